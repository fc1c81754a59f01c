"""Models, wheels and other files to resolve, made in place."""

from __future__ import annotations

import hashlib
import json
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pocketlm.progress import Quiet


class Listener:
    """A `Progress` that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def task(self, description: str, total: int, done: int = 0) -> AbstractContextManager[Any]:
        return Quiet().task(description, total, done)

    def say(self, message: str) -> None:
        self.said.append(message)


def safetensors_bytes(floats: int = 6, name: str = "weight") -> bytes:
    header = json.dumps({name: {"dtype": "F32", "shape": [floats], "data_offsets": [0, 4 * floats]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4 * floats)


def model_files() -> dict[str, bytes]:
    return {
        "config.json": b'{"model_type": "bert"}',
        "tokenizer.json": b"{}",
        "model.safetensors": safetensors_bytes(),
        "README.md": b"---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n",
    }


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def make_wheel(
    folder: Path, package: str, files: dict[str, bytes], version: str = "1.0", metadata: str = ""
) -> tuple[Path, str]:
    """A wheel that pip accepts; returns its path and sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{package.replace('-', '_')}-{version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    about = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        f"{metadata}",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in {**files, **about}.items():
            opened.writestr(name, content)
    return wheel, hashlib.sha256(wheel.read_bytes()).hexdigest()

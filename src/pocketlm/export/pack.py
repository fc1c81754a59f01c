"""Put everything that ships into one folder: the pocket, still without its figures."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import (
    load_file,  # pyright: ignore[reportUnknownVariableType]
    save_file,  # pyright: ignore[reportUnknownVariableType]
)

from pocketlm.artifact import Artifact, write_json
from pocketlm.export.code import code_pocket
from pocketlm.stage import Context

FORMAT = 1
RUNTIME_FILES = ("model.onnx", "tokenizer.json")
ONE_FILE = "model.pocket"


@dataclass(frozen=True)
class Pack:
    """Lay out the pocket's folder.

    The device needs `model.onnx` and `tokenizer.json`. `model.safetensors` and `config.json` are the
    same model before quantization, for transformers. `model.pocket` is graph and tokenizer once more, in
    one file that is small to download and that the runtime opens as it is.

    Args:
        half: Store `model.safetensors` in float16; it is loaded as float32 all the same.
        coded: Write `model.pocket`, which is what ships then.
    """

    half: bool = True
    coded: bool = False

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part `pocket` and the figure `size_bytes` of what the device needs.

        Where that is one file, also `unpacked_bytes`, of graph and tokenizer by themselves.
        """
        student, folder = artifact.parts["student"], context.folder / "pocket"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copyfile(artifact.parts["onnx"], folder / "model.onnx")
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(student / name, folder / name)
        tensors = load_file(student / "model.safetensors")
        if self.half:
            tensors = {n: t.half() if t.dtype == torch.float32 else t for n, t in tensors.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        needed = {
            "format": FORMAT,
            "name": artifact.figures["data_name"],
            "task": artifact.task.to_dict(),
            "max_length": artifact.figures["max_length"],
        }
        if self.coded:
            code_pocket(folder / ONE_FILE, needed, folder / "model.onnx", folder / "tokenizer.json")
        info = {
            **needed,
            "shape": artifact.figures["shape"],
            "parameters": artifact.figures["parameters"],
            "files": described_files(folder),
        }
        write_json(folder / "pocket.json", info)
        plain = sum((folder / name).stat().st_size for name in RUNTIME_FILES)
        figures = {"size_bytes": shipped_bytes(folder), **({"unpacked_bytes": plain} if self.coded else {})}
        return artifact.with_part("pocket", folder).with_figures(**figures)


def described_files(folder: Path) -> dict[str, dict[str, str | int]]:
    """Size and sha256 of every file of a pocket but `pocket.json`, which holds them."""
    return {
        path.name: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size_bytes": path.stat().st_size,
        }
        for path in sorted(folder.iterdir())
        if path.name != "pocket.json"
    }


def shipped(folder: Path) -> Path:
    """What a device opens of a pocket: its one file, or the folder where there is none."""
    return folder / ONE_FILE if (folder / ONE_FILE).exists() else folder


def shipped_bytes(folder: Path) -> int:
    """Bytes of what a device needs in order to predict: the graph and the tokenizer, or both in one file."""
    opened = shipped(folder)
    files = [opened] if opened.is_file() else [folder / name for name in RUNTIME_FILES]
    return sum(path.stat().st_size for path in files)

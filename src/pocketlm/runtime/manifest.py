"""`pocket.json`: what a pocket says of itself, and whether its files are the ones it names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard, cast

from pocketlm.errors import PocketError
from pocketlm.tasks.task import Task

FORMAT = 1
MODEL, TOKENIZER, MANIFEST, CARD = "model.onnx", "tokenizer.json", "pocket.json", "README.md"
MEND = "copy the whole folder again, or make it again with: pocketlm shrink"


def read_info(folder: Path) -> dict[str, Any]:
    """Read `pocket.json` and check that this version knows its format.

    Raises:
        PocketError: it is missing, broken or from a newer pocketlm.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise PocketError(f"{folder} is not a folder; name the folder that pocketlm shrink wrote")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PocketError(f"{folder} is not a pocket: it has no {MANIFEST}; {MEND}") from error
    except OSError as error:
        raise PocketError(f"cannot read {path}: {error.strerror}; {MEND}") from error
    except (ValueError, RecursionError) as error:
        raise PocketError(f"{path} is not valid JSON: {error}; {MEND}") from error
    if not isinstance(info, dict):
        raise PocketError(f"{path} must hold a JSON object, not a {_kind(info)}; {MEND}")
    info = cast(dict[str, Any], info)
    version = info.get("format")
    if not _is_count(version) or version < 1:
        raise PocketError(f"{path}: format={version!r} is not a format number; {MEND}")
    if version > FORMAT:
        raise PocketError(
            f"{path} has format {version}, and this pocketlm reads up to {FORMAT}: it was made by a newer "
            "pocketlm; upgrade with: pip install --upgrade pocketlm"
        )
    return info


def check_files(info: dict[str, Any], folder: Path, verify: bool, others: bool = False) -> None:
    """Compare model and tokenizer with their entries in `pocket.json`.

    Other files of a pocket (weights, report) may be left behind: the runtime does not read them.

    Args:
        info: See `read_info`.
        folder: The pocket.
        verify: Compare the checksums, too, not the sizes alone.
        others: Look at the other files, too, where they are there; not at the card, which may be edited.

    Raises:
        PocketError: an entry is broken, or a file is missing or not the one that was listed.
    """
    files = _listed_files(info, folder)
    for name, entry in files.items():
        if name in (MODEL, TOKENIZER) or (others and name != CARD and (folder / name).exists()):
            _check_file(folder / name, entry, verify)


def described(info: dict[str, Any]) -> tuple[str, Task, int]:
    """Name, task and maximal length in tokens.

    Raises:
        PocketError: one of them is missing or unusable.
    """
    name, task, max_length = info.get("name"), info.get("task"), info.get("max_length")
    if not isinstance(name, str) or not name:
        raise PocketError(f"{MANIFEST}: name={name!r} is not a name; {MEND}")
    if not isinstance(task, dict):
        raise PocketError(f"{MANIFEST}: task must be an object, not a {_kind(task)}; {MEND}")
    if not _is_count(max_length) or max_length < 1:
        raise PocketError(f"{MANIFEST}: max_length={max_length!r} is not a number of tokens; {MEND}")
    parsed = Task.from_dict(cast(dict[str, Any], task))
    labels = parsed.labels
    if parsed.kind == "classification" and (len(labels) < 2 or len(set(labels)) < len(labels)):
        raise PocketError(
            f"{MANIFEST}: a classification has two or more different labels, not {labels!r}; {MEND}"
        )
    if parsed.kind in ("multilabel", "joint") and (not labels or len(set(labels)) < len(labels)):
        raise PocketError(f"{MANIFEST}: {parsed.kind} has different labels, not {labels!r}; {MEND}")
    tags = parsed.tags
    if (parsed.kind in ("tokens", "joint")) != bool(tags) or len(set(tags)) < len(tags):
        raise PocketError(
            f"{MANIFEST}: tokens and joint have different tags, the other kinds none; {parsed.kind} has "
            f"{tags!r}; {MEND}"
        )
    if parsed.kind == "qa" and not parsed.pair:
        raise PocketError(f"{MANIFEST}: qa is a task on pairs (a question and a context); {MEND}")
    return name, parsed, max_length


def _listed_files(info: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    files = info.get("files")
    if not isinstance(files, dict):
        raise PocketError(f"{folder / MANIFEST}: files must be an object, not a {_kind(files)}; {MEND}")
    for name, entry in cast(dict[str, Any], files).items():
        if name in ("", ".", "..") or name != PurePosixPath(name).name or name != PureWindowsPath(name).name:
            raise PocketError(
                f"{folder / MANIFEST} lists the file {name!r}; allowed are plain names inside the folder; "
                f"{MEND}"
            )
        fields = cast(dict[str, Any], entry) if isinstance(entry, dict) else {}
        if not isinstance(fields.get("sha256"), str) or not _is_count(fields.get("size_bytes")):
            raise PocketError(
                f"{folder / MANIFEST}: files[{name!r}] must be an object with sha256 (text) and size_bytes "
                f"(number), not {entry!r:.80}; {MEND}"
            )
    for name in (MODEL, TOKENIZER):
        if name not in files:
            raise PocketError(f"{folder / MANIFEST} does not list {name}; {MEND}")
    return cast(dict[str, dict[str, Any]], files)


def _check_file(path: Path, entry: dict[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise PocketError(f"{path} is missing; {MEND}")
    size_bytes = path.stat().st_size
    if size_bytes != entry["size_bytes"]:
        raise PocketError(
            f"{path} has {size_bytes:,} bytes and should have {entry['size_bytes']:,}: "
            f"cut short or replaced; {MEND}"
        )
    if not verify:
        return
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PocketError(f"cannot read {path}: {error.strerror}; {MEND}") from error
    if sha256 != entry["sha256"].lower():
        raise PocketError(
            f"{path} has sha256 {sha256[:12]}… and should have {entry['sha256'][:12]}…: "
            f"damaged or replaced; {MEND}"
        )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _kind(value: object) -> str:
    return type(value).__name__

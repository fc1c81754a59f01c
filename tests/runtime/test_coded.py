"""One file to download: what goes in comes out, and a damaged file is told, whatever is wrong with it."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pocketlm import load
from pocketlm.errors import PocketError
from pocketlm.export.code import code_pocket
from pocketlm.export.pack import shipped, shipped_bytes
from pocketlm.measure.fresh import peak_ram_bytes
from pocketlm.runtime import coded, pocket
from pocketlm.runtime.coded import decode, encode, read_coded, write_coded
from tests.conftest import Made

PARTS = {"pocket.json": b'{"name": "x"}', "tokenizer.json": b"{}", "model.onnx": b"graph"}


@given(
    hnp.arrays(st.sampled_from([np.int8, np.uint8]), hnp.array_shapes(min_dims=1, max_dims=3, max_side=20))
)
def test_a_tensor_comes_out_as_it_went_in(values: np.ndarray) -> None:
    entry, words = encode(values)
    found = decode(json.loads(json.dumps(entry)), words.astype(np.uint32))
    assert found.dtype == values.dtype and np.array_equal(found, values)


@given(hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(width=32, allow_nan=False)))
def test_so_does_one_of_few_numbers(values: np.ndarray) -> None:
    entry, words = encode(values)
    assert np.array_equal(decode(json.loads(json.dumps(entry)), words.astype(np.uint32)), values)


def test_three_codebooks_fit_in_one_tensor() -> None:
    values = np.random.default_rng(0).integers(0, 3 * 256, (40, 60)).astype(np.float32)
    assert np.array_equal(decode(*encode(values)), values)
    with pytest.raises(ValueError, match="900 values are too many"):
        encode(np.arange(900, dtype=np.float32))


def test_few_values_take_few_bits() -> None:
    chance = np.random.default_rng(0)
    values = np.clip(np.round(chance.normal(size=100_000) / 0.354), -7, 7).astype(np.int8) * 9
    _, words = encode(values)
    shares = np.bincount(values // 9 + 7) / len(values)
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    assert 32 * len(words) / len(values) == pytest.approx(entropy, rel=0.005)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coded") / "model.pocket"
    chance = np.random.default_rng(0)
    tensors = {name: chance.integers(-9, 9, (30, 40), dtype=np.int8) for name in ("a", "b")}
    write_coded(path, PARTS, tensors)
    return path


def test_all_parts_come_back(file: Path) -> None:
    found = read_coded(file)
    assert (found.info, found.tokenizer, found.graph) == ({"name": "x"}, b"{}", b"graph")
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {"a": (30, 40), "b": (30, 40)}


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_file_is_told_and_never_believed(file: Path, data: st.DataObject) -> None:
    content = bytearray(file.read_bytes())
    for place in data.draw(st.sets(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: bytes(content[:cut]))
        with pytest.raises(PocketError, match="is no pocket that this pocketlm can read"):
            read_coded(file)


def index_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 12 + struct.unpack("<I", content[8:12])[0]
    return json.loads(lzma.decompress(content[12:end])), content[end:]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda index: index.update(format=2), "format 2"),
        (lambda index: index["tensors"][0].update(shape=[1 << 40]), "more than 64 times its size"),
        (lambda index: index["tensors"][0].update(shape=[-30, -40]), "-30 is not a count"),
        (lambda index: index["tensors"][0].update(shape=[1.5]), "1.5 is not a count"),
        (lambda index: index["tensors"][0].update(counts=[0, 0]), "the tensor 'a' is none"),
        (lambda index: index["tensors"][0].update(counts=[]), "the tensor 'a' is none"),
        (lambda index: index["tensors"][0].update(type="float64"), "the tensor 'a' is none"),
        (lambda index: index["tensors"][0].update(first=120), "the tensor 'a' begins at 120"),
        (lambda index: index["tensors"][1].update(words=10**9), "is no pocket"),
        (lambda index: index["tensors"].pop(), "left over"),
        (lambda index: index["parts"].pop(), "its weights are not those that were written"),
        (lambda index: index["parts"][1].update(name="other"), "holds no pocket: 'tokenizer.json'"),
        (lambda index: index["tensors"][0].update(type="float32", values=[1.0]), "as many numbers as counts"),
        (lambda index: index["tensors"][0].update(type="float32"), "'values'"),
        (
            lambda index: index["tensors"][0].update(type="float32", counts=[1], values=[[0] * 99]),
            "as many numbers as counts",
        ),
        (lambda index: index.update(more="x" * 5_000_000), "a part of it is longer than"),
        (lambda index: index["parts"][0].update(size=3), "longer than 3 bytes"),
        (lambda index: index["parts"][0].update(bytes=10**9), "it is cut short"),
        (lambda index: index.pop("sha256"), "'sha256'"),
        (lambda index: index.update(tensors=None), "is no pocket"),
    ],
)
def test_no_number_of_the_index_is_trusted(file: Path, tmp_path: Path, change: Any, told: str) -> None:
    index, rest = index_of(file.read_bytes())
    change(index)
    head = lzma.compress(json.dumps(index).encode())
    path = tmp_path / "model.pocket"
    path.write_bytes(coded.MAGIC + struct.pack("<I", len(head)) + head + rest)
    with pytest.raises(PocketError) as error:
        read_coded(path)
    assert told in str(error.value)


def with_parts(parts: list[bytes]) -> bytes:
    index = {
        "format": coded.FORMAT,
        "sha256": hashlib.sha256(b"").hexdigest(),
        "parts": [
            {"name": str(place), "bytes": len(part), "size": 1 << 40} for place, part in enumerate(parts)
        ],
        "tensors": [],
    }
    head = lzma.compress(json.dumps(index).encode())
    return b"".join([coded.MAGIC, struct.pack("<I", len(head)), head, *parts])


def test_what_all_parts_come_to_is_bounded_and_so_is_what_unpacking_takes(tmp_path: Path) -> None:
    path = tmp_path / "model.pocket"
    path.write_bytes(with_parts([lzma.compress(bytes(50_000))] * 40))
    with pytest.raises(PocketError, match="a part of it is longer than"):
        read_coded(path)
    # A dictionary of 1 GB, of which nothing is used.
    greedy = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    part = lzma.compress(b"x" * 100, filters=greedy)
    path.write_bytes(with_parts([part]))
    with pytest.raises(PocketError, match=r"[Mm]emory"):
        read_coded(path)


def test_an_index_that_no_reader_takes_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coded, "MOST_INDEX", 300)
    with pytest.raises(ValueError, match="9 tensors need an index of"):
        write_coded(tmp_path / "file", {}, {str(name): np.zeros(3, np.int8) for name in range(9)})
    assert not [*tmp_path.iterdir()]


def test_the_one_file_says_what_the_folder_says(made: Made, tmp_path: Path) -> None:
    needed = {name: made.info[name] for name in ("format", "name", "task", "max_length")}
    path = tmp_path / "model.pocket"
    code_pocket(path, needed, made.pocket / "model.onnx", made.pocket / "tokenizer.json")
    texts = ["a radiant film", "this dull story of the river", ""]
    one, folder = load(path), load(made.pocket)
    assert np.array_equal(one.logits(texts), folder.logits(texts))
    assert one.predict(texts) == folder.predict(texts) and one.task == folder.task
    sizes = [file.stat().st_size for file in (path, made.pocket / "model.onnx")]
    assert sizes[0] < sizes[1]
    assert shipped(tmp_path) == path and shipped_bytes(tmp_path) == sizes[0]
    assert shipped(made.pocket) == made.pocket and shipped_bytes(made.pocket) > sizes[1]
    # Memory and start are measured of what ships: unpacked, it takes more than its bytes.
    memory = peak_ram_bytes(shipped(tmp_path), texts, threads=1)
    assert memory is None or memory > sizes[1]


def test_so_does_one_of_weights_of_sixteen_bits(pocket_of_halves: Path) -> None:
    texts = ["a radiant film", "this dull story of the river", ""]
    one, folder = load(pocket_of_halves / "model.pocket"), load(pocket_of_halves)
    assert np.array_equal(one.logits(texts), folder.logits(texts))


def test_weights_that_are_not_coded_are_counted_for_threads(
    pocket_of_halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pocket, "ONE_THREAD_BYTES", (pocket_of_halves / "model.onnx").stat().st_size // 2)
    opened: Any = load(pocket_of_halves / "model.pocket", threads=3)
    assert opened._session.get_session_options().intra_op_num_threads == 3


def test_what_is_no_file_of_ours_is_told(made: Made, tmp_path: Path) -> None:
    with pytest.raises(PocketError, match="it does not begin as one"):
        load(made.pocket / "pocket.json")
    shutil.copyfile(made.pocket / "model.onnx", tmp_path / "model.pocket")
    with pytest.raises(PocketError, match="copy the file again"):
        load(tmp_path / "model.pocket")

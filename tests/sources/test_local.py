"""Files and folders on this machine, whole and damaged."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.errors import SourceError
from pocketlm.sources import local, resolve
from pocketlm.sources.local import check_safetensors
from tests.sources.builders import model_files, safetensors_bytes, write_tree


def test_a_local_model_is_itself(tmp_path: Path):
    folder = write_tree(tmp_path / "teacher", model_files())
    found = resolve(str(folder), "model", tmp_path / "cache")
    assert (found.path, found.name, found.licence) == (folder, "teacher", "apache-2.0")
    assert not (tmp_path / "cache").exists()


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tree(tmp_path / "teacher", model_files())
    assert resolve("~/teacher", "model", tmp_path / "cache").path == tmp_path / "teacher"


def test_a_fingerprint_is_of_names_and_bytes_that_matter(tmp_path: Path):
    def fingerprint(folder: str, **changed: bytes) -> str:
        files = model_files() | {name.replace("__", "."): content for name, content in changed.items()}
        return resolve(str(write_tree(tmp_path / folder, files)), "model", tmp_path).fingerprint

    same = fingerprint("a")
    assert len(same) == 64 and fingerprint("b") == same
    assert fingerprint("c", notes__txt=b"mine", README__md=b"changed") == same
    assert fingerprint("d", config__json=b'{"model_type": "mpnet"}') != same
    assert fingerprint("e", vocab__txt=b"a\n") != fingerprint("f", merges__txt=b"a\n")


def test_a_data_file_is_its_bytes_and_a_folder_its_data_files(tmp_path: Path):
    folder = write_tree(
        tmp_path / "set", {"train.tsv": b"a\tb\n", "part/test.csv.gz": b"x", ".hidden/x.csv": b"y"}
    )
    one = resolve(str(folder / "train.tsv"), "data", tmp_path)
    assert one.fingerprint == hashlib.sha256(b"a\tb\n").hexdigest()
    assert (one.name, one.licence) == ("train.tsv", None)
    assert [file.name for file in local.data_files(folder)] == ["test.csv.gz", "train.tsv"]
    before = resolve(str(folder), "data", tmp_path).fingerprint
    write_tree(folder, {"notes.md": b"not data", ".hidden/x.csv": b"changed"})
    assert resolve(str(folder), "data", tmp_path).fingerprint == before
    (folder / "train.tsv").rename(folder / "valid.tsv")
    assert resolve(str(folder), "data", tmp_path).fingerprint != before


def test_a_folder_without_data_names_the_formats(tmp_path: Path):
    with pytest.raises(SourceError, match="holds no data files; allowed: tsv, csv, jsonl, parquet"):
        resolve(str(tmp_path), "data", tmp_path)


def test_a_pipe_is_no_data(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        resolve(str(tmp_path / "pipe"), "data", tmp_path)


def test_an_unreadable_file_is_an_error_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, progress: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    write_tree(tmp_path, {"train.tsv": b""})
    monkeypatch.setattr(local, "hash_file", refuse)  # root may read everything, so a mode would not do
    with pytest.raises(SourceError, match=r"cannot read .*train\.tsv: Permission denied"):
        resolve(str(tmp_path / "train.tsv"), "data", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": None}, r"has no config\.json; name the folder that save_pretrained"),
        ({"tokenizer.json": None}, "no tokenizer.json and no vocab.txt; put the tokenizer beside"),
        ({"model.safetensors": None}, "has no model.safetensors; a model is a folder with"),
        ({"model.safetensors": None, "model-1-of-1.safetensors": b""}, "no model.safetensors.index.json"),
        ({"config.json": b"{"}, r"config\.json is not JSON"),
        ({"config.json": b"[" * 100_000}, r"config\.json is not JSON"),
        ({"config.json": b"[]"}, r"config\.json holds list, not a JSON object"),
        (
            {"model.safetensors": None, "pytorch_model.bin": b"", "a.pt": b""},
            r"\(a\.pt, pytorch_model\.bin\)",
        ),
        (
            {"model.safetensors": None, "tf_model.h5": b""},
            r"only pickled weights .*never opens; convert them",
        ),
        ({"model.safetensors": None, "x.ckpt": b""}, r"save_pretrained\(NEW_FOLDER\)"),
    ],
)
def test_a_model_folder_says_what_it_lacks(change: dict[str, bytes | None], message: str, tmp_path: Path):
    files = {name: content for name, content in (model_files() | change).items() if content is not None}
    folder = write_tree(tmp_path / "teacher", files)
    with pytest.raises(SourceError, match=message):
        resolve(str(folder), "model", tmp_path)


def test_a_file_is_no_model(tmp_path: Path):
    write_tree(tmp_path, {"model.safetensors": safetensors_bytes()})
    with pytest.raises(SourceError, match=r"is a file; a model is a folder with config\.json"):
        resolve(str(tmp_path / "model.safetensors"), "model", tmp_path)


def test_pickles_beside_safetensors_do_no_harm(tmp_path: Path):
    folder = write_tree(tmp_path / "teacher", model_files() | {"pytorch_model.bin": b"never read"})
    assert resolve(str(folder), "model", tmp_path).path == folder


def test_shards_are_checked_one_by_one(tmp_path: Path):
    files = model_files()
    del files["model.safetensors"], files["tokenizer.json"]
    shards = {f"model-0000{i}-of-00002.safetensors": safetensors_bytes(i) for i in (1, 2)}
    weight_map = {f"layer{i}": name for i, name in enumerate(shards)}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}
    folder = write_tree(tmp_path / "teacher", files | {"vocab.txt": b"a"} | shards | index)
    assert resolve(str(folder), "model", tmp_path).path == folder
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"model-00002-of-00002\.safetensors is truncated"):
        resolve(str(folder), "model", tmp_path)
    second.unlink()
    with pytest.raises(
        SourceError, match=r"has no model-00002-of-00002\.safetensors, which .*index\.json names"
    ):
        resolve(str(folder), "model", tmp_path)
    write_tree(folder, {"model.safetensors.index.json": b'{"weight_map": {"w": "../elsewhere.safetensors"}}'})
    with pytest.raises(SourceError, match=r"names '\.\./elsewhere\.safetensors'; allowed are"):
        resolve(str(folder), "model", tmp_path)


def test_our_reading_of_safetensors_agrees_with_the_reference(tmp_path: Path):
    numpy = pytest.importorskip("numpy")
    save_file = pytest.importorskip("safetensors.numpy").save_file
    tensors = {"a": numpy.ones((3, 5), "float32"), "b": numpy.zeros(0, "int8"), "c": numpy.ones(7, "float16")}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "np"})
    check_safetensors(tmp_path / "x.safetensors")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_truncation_or_extension_of_safetensors_passes(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    whole = safetensors_bytes(data.draw(st.integers(1, 20)))
    length = data.draw(st.integers(0, len(whole) + 8).filter(lambda n: n != len(whole)))
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    path.write_bytes((whole + bytes(8))[:length])
    with pytest.raises(SourceError, match=r"truncated|corrupt"):
        check_safetensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b'{"__metadata__": {}}',
        b"[]",
        b"\xff\xfe",
        b'{"w": 3}',
        b'{"w": {"data_offsets": [4, 0]}}',
        b'{"w": {"data_offsets": [0, "4"]}}',
        b'{"w": {"data_offsets": [0, 4, 8]}}',
        b'{"w": {"data_offsets": [false, true]}}',
        b'{"w": {"data_offsets": [0, 1e300]}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_safetensors_header_is_refused(header: bytes, tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(SourceError, match=r"is corrupt: its header|holds no tensors"):
        check_safetensors(tmp_path / "x.safetensors")


def test_a_header_length_from_outside_allocates_nothing(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    for claimed in (2**63, 2**40, 200_000_000):
        with path.open("wb") as file:
            file.write(claimed.to_bytes(8, "little"))
            file.truncate(300_000_000)  # sparse: it claims no disk
        with pytest.raises(SourceError, match=f"300000000 bytes, and its header claims {claimed}"):
            check_safetensors(path)


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("\ufeff---\r\nlicense: 'apache-2.0' # ours\r\n---\r\n", "apache-2.0"),
        ("---\ntags:\n- x\nlicense:\n- mit\n- cc-by-4.0\nlanguage: en\n---\n", "mit, cc-by-4.0"),
        ("---\nlicense: [mit, gpl-3.0]\n---\n", "mit, gpl-3.0"),
        ("---\nlicense: Apache License 2.0\n---\n", "Apache License 2.0"),
        ("---\nlicense:\nlanguage: en\n---\n", None),
        ("# no front matter\nlicense: mit\n", None),
        ("---\nlicense_name: x\n---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_the_licence_of_a_readme(readme: str, licence: str | None):
    assert local.licence_of_readme(readme) == licence

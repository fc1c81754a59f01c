"""Which columns hold the texts and the label, what task that makes, and labels as numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketlm.data.read import Row, Value
from pocketlm.data.word_labels import json_value
from pocketlm.errors import DataError
from pocketlm.tasks.task import Kind, Task

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
TOKENS = ("tokens", "words")
TAGS = ("slots", "tags", "ner_tags")
INTENTS = ("intent", "label")
ANSWERS = ("answers", "answer", "answer_text")
ANSWER_START = "answer_start"
MAX_CLASSES = 1000
LABELS_SHOWN = 10
COLUMNS_SHOWN = 20


@dataclass(frozen=True)
class Columns:
    """Names as they are written in the table.

    Args:
        text: One column of texts or of tokens, or two for pairs; question and context.
        label: The column of the label; of the tags, where words have the only labels; of the answers.
        tags: The column of the tags of a joint task.
        start: The column of the first character of an answer.
        kind: The task that the columns show by their names; None where the labels have to tell.
    """

    text: tuple[str, ...]
    label: str
    tags: str | None = None
    start: str | None = None
    kind: Kind | None = None


def find_columns(
    table_columns: Sequence[str],
    rows: Sequence[Row],
    text: Sequence[str] = (),
    label: str | None = None,
    where: str = "the data",
    kind: Kind | None = None,
    tags: str | None = None,
) -> Columns:
    """Find the columns by name, case ignored, where the user does not name them.

    Tokens beside tags are a task on words, with an intent a joint one; a question beside a context and
    answers is question answering.

    Our own names (`text`, `text_a` and `text_b`, `label`) win over the other known ones; two of the
    others leave the choice to the user.

    Args:
        table_columns: All columns of the table.
        rows: Its rows; the first is shown as an example in messages.
        text: One or two column names given by the user; none to search.
        label: The label column given by the user; None to search.
        where: File name, for messages.
        kind: The user's word; None lets the columns tell.
        tags: The column of tags given by the user; None to search.

    Raises:
        DataError: a given column is not there, or the search finds none or several.
    """
    shown = _show(table_columns, rows)
    if kind is None and not text and label is None:
        kind = _kind_of_columns(table_columns)
    if kind == "qa":
        return _question_columns(table_columns, text, label, where, shown)
    if kind in ("tokens", "joint"):
        return _word_columns(table_columns, kind, text, label, tags, where, shown)
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


def _kind_of_columns(columns: Sequence[str]) -> Kind | None:
    """The task that only one kind of table has the columns for."""
    names = {column.lower() for column in columns}
    if names & set(TOKENS) and names & set(TAGS):
        return "joint" if names & set(INTENTS) else "tokens"
    return "qa" if {"question", "context"} <= names and names & set(ANSWERS) else None


def _word_columns(
    columns: Sequence[str],
    kind: Kind,
    text: Sequence[str],
    label: str | None,
    tags: str | None,
    where: str,
    shown: str,
) -> Columns:
    """Tokens and tags, and the intent of a joint task; `--label` names the intent, or else the tags."""
    if len(text) > 1:
        raise DataError(f"{where}: --text takes one column where words have tags, not {list(text)}")
    found = text[0] if text else None
    tokens = _named(columns, found, (*TOKENS, *TEXTS), "tokens", "--text", where, shown)
    tags = tags or (label if kind == "tokens" else None)
    option = "--label" if kind == "tokens" else "--set prepare.tags=COLUMN"
    of_words = _named(columns, tags, TAGS, "tags", option, where, shown)
    if kind == "tokens":
        return Columns((tokens,), of_words, kind=kind)
    intent = _named(columns, label, INTENTS, "intent", "--label", where, shown)
    return Columns((tokens,), intent, of_words, kind=kind)


def _question_columns(
    columns: Sequence[str], text: Sequence[str], label: str | None, where: str, shown: str
) -> Columns:
    if len(text) not in (0, 2):
        raise DataError(f"{where}: give --text twice, for the question and the context, not {list(text)}")
    question, context = text or (None, None)
    names = (
        _named(columns, question, ("question",), "question", "--text", where, shown),
        _named(columns, context, ("context",), "context", "--text", where, shown),
    )
    answers = _named(columns, label, ANSWERS, "answers", "--label", where, shown)
    start = next((column for column in columns if column.lower() == ANSWER_START), None)
    return Columns(names, answers, start=start, kind="qa")


def _named(
    columns: Sequence[str],
    given: str | None,
    known: Sequence[str],
    what: str,
    option: str,
    where: str,
    shown: str,
) -> str:
    """The column that the user names, or the one with the first known name that is there."""
    if given is not None:
        return _given(columns, given, option, where, shown)
    by_name = {column.lower(): column for column in columns}
    for name in known:
        if name in by_name:
            return by_name[name]
    raise DataError(f"{where}: no column is known as {what}; name it with {option}; {shown}")


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
    labels: Sequence[Any],
    pair: bool,
    kind: Kind | None = None,
    where: str = "train",
    numbers: Sequence[int] = (),
) -> Task:
    """The task that the labels of the training split pose.

    All numbers and at least one of them not whole: regression. Whole numbers or strings:
    classification, its labels in ascending order if all are whole numbers, else by code point.

    Args:
        labels: Of the training split: raw values; lists of names (multilabel); lists of tags (tokens);
            `intent` and `tags` (joint); answers (qa).
        pair: True where an example is two texts.
        kind: The user's word, which settles it.
        where: Split and file, for messages.
        numbers: Row number of each label, for messages; 1 … n if empty.

    Raises:
        DataError: a label is missing or, in regression, not a finite number; all labels are the
            same; or nearly every row has a label of its own.
    """
    if kind in ("multilabel", "tokens", "joint", "qa"):
        return _task_of_lists(labels, pair, kind, where, numbers)
    names: list[str] = []
    for number, value in _numbered(labels, numbers):
        names.append(_present(value, where, number))
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


def _task_of_lists(labels: Sequence[Any], pair: bool, kind: Kind, where: str, numbers: Sequence[int]) -> Task:
    """The task whose labels are lists of names, or hold some."""
    if not labels:
        raise DataError(f"{where}: no rows are left to train on; check the texts and the labels")
    if kind == "qa":
        return Task("qa", pair=True)
    if kind == "joint":
        intents = infer_task([label["intent"] for label in labels], pair, "classification", where, numbers)
        tags = _several({tag for label in labels for tag in label["tags"]}, "tag", where)
        return Task("joint", pair, intents.labels, tags)
    names = {name for label in labels for name in label}
    if kind == "tokens":
        return Task("tokens", pair, tags=_several(names, "tag", where))
    return Task("multilabel", pair, _several(names, "label", where))


def _several(names: set[str], what: str, where: str) -> tuple[str, ...]:
    if len(names) < 2:
        raise DataError(
            f"{where}: {len(names)} different {what}s ({', '.join(names)}), so there is nothing to learn; "
            f"add rows with another, or {_OTHER_LABEL}"
        )
    return _ordered(names)


def are_lists(labels: Sequence[Value]) -> bool:
    """True where every label that is there is a JSON list, and one is: any number of labels an example."""
    lists = [isinstance(json_value(label), list) for label in labels if label is not None]
    return bool(lists) and all(lists)


_OTHER_LABEL = "name the right column with --label"


def _numbered(values: Sequence[Any], numbers: Sequence[int]) -> zip[tuple[int, Any]]:
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


def encode_labels(values: Sequence[Any], task: Task, where: str, numbers: Sequence[int] = ()) -> list[Any]:
    """Labels as `pocketlm.data.examples.Examples` holds them.

    An intent or a tag that train lacks is kept, to be counted as wrong: the intent as -1, the tag by name.

    Args:
        values: Of one split, as `infer_task` takes them.
        task: What `infer_task` found in train.
        where: Split and file, for messages.
        numbers: Row number of each value, for messages; 1 … n if empty.

    Raises:
        DataError: a label is missing, does not occur in train, or is not a finite number.
    """
    if task.kind in ("tokens", "qa"):
        return list(values)
    index = {name: place for place, name in enumerate(task.labels)}

    def encoded(value: Any, number: int) -> Any:
        if task.kind == "regression":
            return _finite(value, where, number)
        if task.kind == "joint":
            return {"intent": index.get(_present(value["intent"], where, number), -1), "tags": value["tags"]}
        if task.kind == "multilabel":
            return sorted({_known(name, index, task, where, number) for name in value})
        return _known(_present(value, where, number), index, task, where, number)

    return [encoded(value, number) for number, value in _numbered(values, numbers)]


def unknown(task: Task, labels: Sequence[Any]) -> dict[str, int]:
    """How many examples have an intent, and how many words a tag, that train lacks."""
    tags = [label["tags"] if task.kind == "joint" else label for label in labels] if task.tags else []
    return {
        "intents": sum(label["intent"] < 0 for label in labels) if task.kind == "joint" else 0,
        "tags": sum(tag not in task.tags for row in tags for tag in row),
    }


def _present(value: Value, where: str, row: int) -> str:
    name = label_name(value)
    if name is None:
        raise DataError(f"{where}, row {row}: the label is missing; fill it in or remove the row")
    return name


def _known(name: str, index: Mapping[str, int], task: Task, where: str, row: int) -> int:
    if name not in index:
        raise DataError(
            f"{where}, row {row}: label {name!r} does not occur in train, which knows "
            f"{_listed(task.labels)}; correct it, add training rows for it, or remove the row "
            "(where the split was cut: stratify keeps every label in train)"
        )
    return index[name]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:LABELS_SHOWN])
    return shown if len(names) <= LABELS_SHOWN else f"{shown} and {len(names) - LABELS_SHOWN} more"

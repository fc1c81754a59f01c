"""Labels of words as tables write them: tokens with tags, and answers inside a context."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from pocketlm.data.read import Row, Value
from pocketlm.errors import DataError
from pocketlm.tasks.task import OUTSIDE, Task
from pocketlm.tasks.words import words_of

_QUESTION = Task("qa", pair=True)
_BIO_OF = {"E": "I", "L": "I", "S": "B", "U": "B"}


def json_value(value: Value) -> Any:
    """The list or mapping that a cell spells in JSON; None where it spells neither."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return None
    try:
        found: Any = json.loads(value)
    except ValueError:
        return None
    return cast(Any, found) if isinstance(found, list | dict) else None


def items(value: Value, separator: str | None = None) -> list[str]:
    """The items of a cell: a JSON list, or a string cut at `separator`; None cuts at white space.

    Items are stripped where a separator is given, and empty ones left out.
    """
    found = json_value(value)
    if isinstance(found, list):
        return [str(item) for item in cast(list[Any], found)]
    text = "" if value is None else str(value)
    if separator is None:
        return text.split()
    return [stripped for item in text.split(separator) if (stripped := item.strip())]


def joined(tokens: Sequence[str], where: str) -> str:
    """The text of an example: its tokens with one blank between.

    Raises:
        DataError: a token is empty or holds white space, so it would not be one word of that text.
    """
    for place, token in enumerate(tokens):
        if token.split() != [token]:
            raise DataError(
                f"{where}: token {place + 1} is {token!r}; a token is one word without white space, with one "
                "tag: split it into several, or remove it with its tag"
            )
    return " ".join(tokens)


def read_tags(value: Value, tokens: Sequence[str], where: str) -> list[str]:
    """One tag a token.

    Raises:
        DataError: another number of tags than of tokens, or tags that are numbers.
    """
    tags = items(value)
    if len(tags) != len(tokens):
        raise DataError(
            f"{where}: {len(tags)} tags for {len(tokens)} tokens; give every token one tag, O where it is in "
            "no span"
        )
    if tags and all(re.fullmatch(r"-?[0-9]+", tag) for tag in tags):
        raise DataError(
            f"{where}: the tags are numbers ({tags[0]}, …), which do not say where a span starts; "
            "write their names, such as O, B-city and I-city"
        )
    return tags


def ends_are_tagged(tags: Collection[str]) -> bool:
    """True where the tags of a data set tell a span's last word, too.

    BIOES has E for it, BILOU L; a span of one word is S or U (Ratinov and Roth 2009,
    https://aclanthology.org/W09-1119/, section 5).
    """
    named = {*tags} - {OUTSIDE}
    fit = all(re.fullmatch("[BIELSU]-.+", tag) for tag in named)
    letters = {tag[:1] for tag in named}
    return fit and "B" in letters and not letters <= {"B", "I"}


def in_bio(tag: str) -> str:
    """A tag of BIOES or BILOU by its name in BIO: the same spans in fewer tags.

    Example:
        >>> in_bio("E-city"), in_bio("S-day"), in_bio("O")
        ('I-city', 'B-day', 'O')
    """
    letter, dash, kind = tag.partition("-")
    return _BIO_OF.get(letter, letter) + dash + kind


def read_answer(row: Row, label: str, start: str | None, context: str, where: str) -> dict[str, Any] | None:
    """The answers to a question, and the words of the context that the first of them covers.

    Args:
        row: Of the table.
        label: Column of the answers: a JSON object with `text` and `answer_start`, a list of such objects
            or of texts, or one text.
        start: Column of the first character of a single answer; None where there is none.
        context: What the answer is part of.
        where: File and row, for messages.

    Returns:
        `answers` (texts), `start` and `end` (first and last word, see `pocketlm.tasks.words.words_of`); None
        where the row has no answer.

    Raises:
        DataError: an answer is not in the context.
    """
    found = json_value(row[label])
    if isinstance(found, dict):
        whole = cast(Mapping[str, Any], found)
        texts, starts = _list(whole.get("text")), _list(whole.get("answer_start"))
    elif isinstance(found, list):
        entries = [_entry(entry) for entry in cast(list[Any], found)]
        texts, starts = ([entry.get(key) for entry in entries] for key in ("text", "answer_start"))
    else:
        texts, starts = _list(row[label]), _list(row[start] if start else None)
    answers = [str(text) for text in texts if text is not None and str(text).strip()]
    if not answers:
        return None
    at = _place(answers[0], starts[0] if starts else None, context, where)
    end = at + len(answers[0])
    covered = [
        place
        for place, (first, last) in enumerate(words_of(_QUESTION, ("", context)))
        if first < end and last > at
    ]
    return {"answers": answers, "start": covered[0], "end": covered[-1]}


def _entry(value: Any) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, dict) else {"text": value}


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return cast(list[Any], value) if isinstance(value, list) else [value]


def _place(answer: str, start: Any, context: str, where: str) -> int:
    """First character of an answer: where it is said to be, else its first occurrence."""
    given = str(start).removesuffix(".0") if start is not None else ""
    if given.isdigit() and context[int(given) : int(given) + len(answer)] == answer:
        return int(given)
    for text, wanted in ((context, answer), (context.lower(), answer.lower())):
        if len(text) == len(context) and (found := text.find(wanted)) >= 0:
            return found
    raise DataError(
        f"{where}: the answer {answer[:40]!r} is not in the context; an answer has to be a part of it, "
        "letter by letter: correct it, or remove the row"
    )

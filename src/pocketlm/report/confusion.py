"""What is mistaken for what: the most confused pairs of labels, and examples on which two models differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketlm.report.ledger import listed
from pocketlm.report.units import shorten

MOST_PAIRS = 6
MOST_EXAMPLES = 20
TEXT_LIMIT = 280
LABEL_LIMIT = 48


@dataclass(frozen=True)
class Pair:
    """A label taken for another: how often by each model, None where a model has no matrix."""

    true: str
    predicted: str
    pocket: int | None
    teacher: int | None
    of: int


@dataclass(frozen=True)
class Example:
    """One test example with three opinions, ready to print."""

    texts: tuple[str, ...]
    label: str
    teacher: str
    pocket: str


def confused_pairs(confusion: Mapping[str, Any], most: int = MOST_PAIRS) -> list[Pair]:
    """The `most` most frequent mistakes of the pocket and of the teacher, in one list.

    Args:
        confusion: `labels`, and `teacher` and `pocket` as counts (labels × labels, true × predicted).
        most: How many to take from each model.

    Returns:
        Pairs by the pocket's count, then the teacher's; empty where nobody errs.
    """
    labels: Sequence[str] = listed(confusion, "labels")
    pocket: Sequence[Sequence[int]] = listed(confusion, "pocket")
    teacher: Sequence[Sequence[int]] = listed(confusion, "teacher")
    counted = pocket or teacher
    top = {pair: None for matrix in (pocket, teacher) if matrix for pair in _mistakes(matrix)[:most]}
    pairs = [
        Pair(
            true=shorten(str(labels[true]), LABEL_LIMIT),
            predicted=shorten(str(labels[predicted]), LABEL_LIMIT),
            pocket=None if not pocket else pocket[true][predicted],
            teacher=None if not teacher else teacher[true][predicted],
            of=sum(counted[true]),
        )
        for true, predicted in top
    ]
    return sorted(
        pairs, key=lambda pair: (-(pair.pocket or 0), -(pair.teacher or 0), pair.true, pair.predicted)
    )


def errors(matrix: Sequence[Sequence[int]] | None) -> int | None:
    """How many examples lie off the diagonal."""
    if not matrix:
        return None
    return sum(
        count for true, row in enumerate(matrix) for predicted, count in enumerate(row) if true != predicted
    )


def examples(
    disagreements: Sequence[Mapping[str, Any]], classification: bool
) -> list[tuple[str, list[Example]]]:
    """Up to 20 disagreements, grouped by who was right; a regression has one unnamed group."""
    groups: dict[str, list[Example]] = {}
    for item in disagreements[:MOST_EXAMPLES]:
        label, teacher, pocket = (str(item.get(key, "")) for key in ("label", "teacher", "pocket"))
        if not classification:
            heading = ""
        elif teacher == label:
            heading = "The teacher was right"
        elif pocket == label:
            heading = "The pocket was right"
        else:
            heading = "Both were wrong"
        shown = Example(
            texts=tuple(shorten(str(text), TEXT_LIMIT) for text in listed(item, "texts")),
            label=shorten(label, LABEL_LIMIT),
            teacher=shorten(teacher, LABEL_LIMIT),
            pocket=shorten(pocket, LABEL_LIMIT),
        )
        groups.setdefault(heading, []).append(shown)
    order = ("", "The teacher was right", "The pocket was right", "Both were wrong")
    return [(heading, groups[heading]) for heading in order if heading in groups]


def _mistakes(matrix: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Pairs (true, predicted) off the diagonal that happened, the most frequent first."""
    found = [
        (true, predicted)
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if true != predicted and count > 0
    ]
    return sorted(found, key=lambda pair: (-matrix[pair[0]][pair[1]], pair))

"""Spans of tagged words, and their exact-match F1.

Tjong Kim Sang and De Meulder 2003, CoNLL-2003 (https://aclanthology.org/W03-0419/), section 3.3: a span is
right if its type and both its ends are right; precision, recall and F1 are over all spans of the split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pocketlm.tasks.task import OUTSIDE, Task
from pocketlm.tasks.transitions import best_tags
from pocketlm.tasks.words import MISSING, WordLogits, words_of

Tagged = tuple[str, int, int]
"""Type of a span, its first word, and the word after its last."""


def spans_of(tags: Sequence[str]) -> list[Tagged]:
    """The spans that a sequence of BIO tags spells.

    A span starts at `B-x`, and at an `I-x` that no span of type x stands before (as the CoNLL script reads
    it); it goes on with `I-x`. A tag of another form is its own type, and equal neighbours are one span.

    Args:
        tags: One tag a word; `O` is in no span.

    Example:
        >>> spans_of(["B-city", "I-city", "O", "I-day", "B-day"])
        [('city', 0, 2), ('day', 3, 4), ('day', 4, 5)]
    """
    found: list[Tagged] = []
    for place, tag in enumerate(tags):
        if tag == OUTSIDE:
            continue
        begins, kind = tag.startswith("B-"), tag[2:] if tag[:2] in ("B-", "I-") else tag
        if found and not begins and found[-1][0] == kind and found[-1][2] == place:
            found[-1] = (kind, found[-1][1], place + 1)
        else:
            found.append((kind, place, place + 1))
    return found


def span_counts(said: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> np.ndarray:
    """Right, said and true spans of every example, int [examples, 3]."""
    rows: list[tuple[int, int, int]] = []
    for ours, theirs in zip(said, true, strict=True):
        one, other = set(spans_of(ours)), set(spans_of(theirs))
        rows.append((len(one & other), len(one), len(other)))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def f1_of(counts: np.ndarray) -> float:
    """F1 of counts (right, said, true), 0 to 1; 0 where nothing is said and nothing is true.

    Args:
        counts: Int [examples, 3], or one row [3].
    """
    right, said, true = counts.reshape(-1, 3).sum(axis=0).tolist()
    return 2 * right / (said + true) if said + true else 0.0


def precision_recall(counts: np.ndarray) -> tuple[float, float]:
    """Share of the said that is right, and share of the true that was said; 0 where there is none."""
    right, said, true = counts.reshape(-1, 3).sum(axis=0).tolist()
    return (right / said if said else 0.0), (right / true if true else 0.0)


def by_type(said: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Counts (right, said, true), int [3], of every type of span that occurs."""
    counts: dict[str, np.ndarray] = {}
    for ours, theirs in zip(said, true, strict=True):
        one, other = set(spans_of(ours)), set(spans_of(theirs))
        for column, spans in enumerate((one & other, one, other)):
            for kind, _, _ in spans:
                counts.setdefault(kind, np.zeros(3, dtype=np.int64))[column] += 1
    return counts


def tags_said(task: Task, logits: WordLogits) -> list[list[str]]:
    """The best tags of every example, one a word; `O` for a word that the model did not see."""
    said = (places_said(task, *logits.of(example)) for example in range(len(logits)))
    return [tags_at(task, places) for places in said]


def places_said(task: Task, logits: np.ndarray, known: np.ndarray) -> list[int]:
    """The best tags of one example, by their place among the task's.

    Args:
        task: Its tags, and which follows which.
        logits: Float [words, tags].
        known: False for a word that the model did not see, bool [words].

    Returns:
        One place a word, `MISSING` where it was not seen.
    """
    places = np.full(len(logits), MISSING)
    places[known] = best_tags(task, logits[known])
    return places.tolist()


def tags_at(task: Task, places: Sequence[int]) -> list[str]:
    """The tags at some places; `O` for `MISSING`."""
    return [OUTSIDE if place == MISSING else task.tags[place] for place in places]


def span_text(task: Task, texts: Sequence[str], start: int, end: int) -> tuple[str, int, int]:
    """The text of words `start` to `end` (excluded), and its first and last character (excluded)."""
    words = words_of(task, texts)
    first, last = words[start][0], words[end - 1][1]
    return texts[0][first:last], first, last

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.tasks.spans import by_type, f1_of, precision_recall, span_counts, span_text, spans_of, tags_said
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits

TAGS = ("O", "B-x", "I-x", "B-y", "I-y", "z")
sequences = st.lists(st.sampled_from(TAGS), max_size=10)
pairs = st.lists(
    st.integers(0, 6).flatmap(
        lambda n: st.tuples(*[st.lists(st.sampled_from(TAGS[:5]), min_size=n, max_size=n)] * 2)
    ),
    min_size=1,
    max_size=6,
)


def conll(tags: list[str]) -> list[tuple[str, int, int]]:
    """The published script's rules, written as it does: where a chunk starts and where one ends."""
    found: list[tuple[str, int, int]] = []
    open_at: int | None = None
    before = ("O", "")
    for place, tag in enumerate([*tags, "O"]):
        now = ("O", "") if tag == "O" else (tag[0], tag[2:])
        ends = before[0] != "O" and (now[0] in "OB" or now[1] != before[1])
        starts = now[0] == "B" or (now[0] == "I" and (before[0] == "O" or now[1] != before[1]))
        if ends and open_at is not None:
            found.append((before[1], open_at, place))
            open_at = None
        if starts:
            open_at = place
        before = now
    return found


@given(st.lists(st.sampled_from(TAGS[:5]), max_size=12))
def test_spans_are_those_of_the_conll_script(tags: list[str]) -> None:
    assert spans_of(tags) == conll(tags)


@given(sequences)
def test_spans_cover_every_tagged_word_once(tags: list[str]) -> None:
    covered = [place for _, start, end in spans_of(tags) for place in range(start, end)]
    assert covered == [place for place, tag in enumerate(tags) if tag != "O"]


def test_spans_by_example() -> None:
    assert spans_of(["B-x", "I-x", "O", "I-x", "B-x"]) == [("x", 0, 2), ("x", 3, 4), ("x", 4, 5)]
    assert spans_of(["B-x", "I-y"]) == [("x", 0, 1), ("y", 1, 2)]
    assert spans_of(["z", "z", "O", "z"]) == [("z", 0, 2), ("z", 3, 4)]
    assert spans_of([]) == []


@given(pairs)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(examples: list[tuple[list[str], list[str]]]) -> None:
    said, true = [one for one, _ in examples], [other for _, other in examples]
    counts = span_counts(said, true)
    precision, recall = precision_recall(counts)
    wanted = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert f1_of(counts) == pytest.approx(wanted)
    assert f1_of(span_counts(true, said)) == f1_of(counts)
    assert f1_of(span_counts(true, true)) == (1.0 if any(spans_of(tags) for tags in true) else 0.0)
    split = by_type(said, true)
    assert sum(split.values(), np.zeros(3, dtype=np.int64)).tolist() == counts.sum(axis=0).tolist()


def test_counts_by_hand() -> None:
    true = [["B-x", "I-x", "O", "B-y"], ["O", "B-x"]]
    said = [["B-x", "O", "O", "B-y"], ["O", "B-x"]]
    assert span_counts(said, true).tolist() == [[1, 2, 2], [1, 1, 1]]
    assert f1_of(span_counts(said, true)) == pytest.approx(4 / 6)


def test_a_type_that_train_lacks_is_a_span_that_was_missed() -> None:
    counts = span_counts([["O", "B-x"]], [["B-new", "B-x"]])
    assert counts.tolist() == [[1, 1, 2]]


def test_a_word_that_was_not_seen_is_outside() -> None:
    task = Task("tokens", pair=False, tags=("B-x", "I-x"))  # without an O of its own, too
    logits = WordLogits(
        np.zeros((2, 0)), np.array([[1.0, 0], [0, 1], [0, 0]]), np.array([True, True, False]),
        np.array([0, 2, 3]), [("a b",), ("c",)],
    )  # fmt: skip
    assert tags_said(task, logits) == [["B-x", "I-x"], ["O"]]


def test_the_text_of_a_span() -> None:
    task = Task("tokens", pair=False, tags=("B-x", "O"))
    assert span_text(task, ("to  São Paulo\tnow",), 1, 3) == ("São Paulo", 4, 13)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.tasks.answers import Answer, answer_of, best_span, exact_match, normalized, token_f1
from pocketlm.tasks.task import Task

QUESTION = Task("qa", pair=True)
numbers = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=12)


@given(numbers, st.integers(1, 5))
def test_the_best_span_is_the_best_of_all(values: list[tuple[int, int]], longest: int) -> None:
    start, end = (np.array(side, dtype=float) for side in zip(*values, strict=True))
    first, last = best_span(start, end, longest)
    assert 0 <= first <= last < min(len(values), first + longest)
    best = max(start[i] + end[j] for i in range(len(values)) for j in range(i, min(len(values), i + longest)))
    assert start[first] + end[last] == best


def test_an_answer_is_cut_out_of_the_context() -> None:
    texts = ("Who?", "It was (Zoë Çelik), they say.")
    logits = np.full((10, 2), -4.0)  # It was ( Zoë Çelik ) , they say .
    logits[3, 0] = logits[4, 1] = 4.0
    answer = answer_of(QUESTION, texts, logits, np.ones(10, dtype=bool))
    assert (answer.text, answer.start, answer.end) == ("Zoë Çelik", 8, 17)
    assert 0.9 < answer.score < 1
    known = np.ones(10, dtype=bool)
    known[4] = False
    assert answer_of(QUESTION, texts, logits, known).text != "Zoë Çelik"


def test_nothing_is_answered_from_nothing() -> None:
    assert answer_of(QUESTION, ("Who?", ""), np.zeros((0, 2)), np.zeros(0, dtype=bool)) == Answer(
        "", 0, 0, 0.0
    )
    assert answer_of(QUESTION, ("Who?", "He"), np.zeros((1, 2)), np.zeros(1, dtype=bool)).text == ""


@pytest.mark.parametrize(
    ("said", "right", "exact", "f1"),
    [
        ("The Cat!", ["cat"], 1.0, 1.0),
        ("a cat and the dog", ["cat"], 0.0, 0.5),
        ("cat", ["dog", "A cat."], 1.0, 1.0),
        ("cat dog", ["cat", "cat dog bird"], 0.0, 0.8),
        ("dog", ["cat"], 0.0, 0.0),
        ("", ["the"], 1.0, 1.0),
        ("theatre", ["atre"], 0.0, 0.0),
        ("cat cat", ["cat"], 0.0, 2 / 3),
    ],
)
def test_squad_scores(said: str, right: list[str], exact: float, f1: float) -> None:
    assert exact_match(said, right) == exact
    assert token_f1(said, right) == pytest.approx(f1)


@given(st.text(max_size=20))
def test_an_answer_matches_itself(text: str) -> None:
    assert exact_match(text, [text]) == token_f1(text, [text]) == 1.0
    assert normalized(normalized(text)) == normalized(text)

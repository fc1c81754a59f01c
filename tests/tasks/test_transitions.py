"""The best sequence of tags: against every sequence there is, and against files of anybody's."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.errors import PocketError
from pocketlm.tasks.spans import places_said, tags_at
from pocketlm.tasks.task import MOST_COUNTED, START, Task
from pocketlm.tasks.transitions import SMOOTHING, WEIGHT, best_tags, count_transitions, gains
from tests.tiny import NO_DEADLINE

TAGS = ("B-x", "I-x", "O")
PLAIN = Task("tokens", False, tags=TAGS)
SEQUENCES = [["O", "B-x", "I-x"], ["O", "O"], ["B-x"], []]
KNOWING = Task("tokens", False, tags=TAGS, transitions=count_transitions(PLAIN, SEQUENCES))


def test_transitions_are_counted_from_the_beginning_on() -> None:
    assert KNOWING.transitions == ((START, 0, 1), (START, 2, 2), (0, 1, 1), (2, 0, 1), (2, 2, 1))


def test_a_gain_is_how_much_likelier_a_tag_is_behind_another() -> None:
    gain = gains(KNOWING.transitions, 3)
    all_ = 6 + 12 * SMOOTHING
    behind_o, alone = (1 + SMOOTHING) / (2 + 3 * SMOOTHING), (2 + 4 * SMOOTHING) / all_
    assert gain[2, 0] == pytest.approx(WEIGHT * np.log(behind_o / alone), rel=1e-5)
    first, alone = (2 + SMOOTHING) / (3 + 3 * SMOOTHING), (3 + 4 * SMOOTHING) / all_
    assert gain[START, 2] == pytest.approx(WEIGHT * np.log(first / alone), rel=1e-5)
    assert gain[0, 1] > 0 > gain[2, 1]  # I-x stands behind B-x, never behind O
    assert np.isfinite(gain).all()


@given(
    words=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    counts=st.lists(
        st.tuples(st.integers(-1, 2), st.integers(0, 2), st.integers(1, 50)), max_size=8,
        unique_by=lambda row: row[:2],
    ),
)  # fmt: skip
@NO_DEADLINE
def test_the_path_is_the_best_of_all(words: int, seed: int, counts: list[tuple[int, int, int]]) -> None:
    task = Task("tokens", False, tags=TAGS, transitions=tuple(sorted(counts)))
    logits = np.random.default_rng(seed).normal(0, 2, (words, 3)).astype(np.float32)
    gain = gains(task.transitions, 3) if counts else np.zeros((4, 3))

    def worth(path: tuple[int, ...]) -> float:
        steps = zip((START, *path[:-1]), path, strict=True)
        return sum(float(gain[step]) for step in steps) + float(logits[range(words), path].sum())

    best = max(worth(path) for path in product(range(3), repeat=words))
    assert worth(tuple(best_tags(task, logits).tolist())) == pytest.approx(best, abs=1e-4)


def test_without_transitions_every_word_gets_its_own_best_tag() -> None:
    logits = np.array([[0.0, 1.0, 0.5], [2.0, 0.0, 1.0]], dtype=np.float32)
    assert best_tags(PLAIN, logits).tolist() == [1, 0]
    assert best_tags(KNOWING, logits[:0]).tolist() == []


def test_a_likely_neighbour_decides_between_tags_that_are_nearly_alike() -> None:
    logits = np.array([[3.0, 0.0, 0.0], [0.0, 1.0, 1.1]], dtype=np.float32)
    assert (best_tags(PLAIN, logits).tolist(), best_tags(KNOWING, logits).tolist()) == ([0, 2], [0, 1])


def test_words_that_were_not_seen_are_no_part_of_the_path() -> None:
    logits = np.array([[3.0, 0.0, 0.0], [9.0, 9.0, 9.0], [0.0, 1.0, 1.1]], dtype=np.float32)
    places = places_said(KNOWING, logits, np.array([True, False, True]))
    assert tags_at(KNOWING, places) == ["B-x", "O", "I-x"]
    assert tags_at(KNOWING, places_said(KNOWING, logits, np.zeros(3, dtype=bool))) == ["O"] * 3


def test_a_task_keeps_its_transitions() -> None:
    assert Task.from_dict(KNOWING.to_dict()) == KNOWING
    assert "transitions" not in PLAIN.to_dict()


@pytest.mark.parametrize(
    "broken",
    [
        "many", {}, [1], [[0, 1]], [[0, 1, 2, 3]], [[0, 1, 2.0]], [[0, 1, True]], [["0", 1, 2]],
        [[-2, 0, 1]], [[3, 0, 1]], [[0, -1, 1]], [[0, 3, 1]], [[0, 1, 0]], [[0, 1, MOST_COUNTED + 1]],
    ],
)  # fmt: skip
def test_transitions_that_do_not_fit_are_refused(broken: Any) -> None:
    with pytest.raises(PocketError, match="transition"):
        Task.from_dict({**PLAIN.to_dict(), "transitions": broken})

"""Labels in each other's place, and models that only guess, for every kind of task."""

from __future__ import annotations

import numpy as np
import pytest

from pocketlm.diagnose.labels import of_labels, swapped
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits

NAMES = ("a", "b", "c", "d")
TASK = Task("classification", False, NAMES)
CHANCE = np.random.default_rng(0)


def said(true: np.ndarray, right: float, outputs: int = 4) -> np.ndarray:
    """Logits that prefer the true label of a share of the examples, and any label of the others."""
    chosen = np.where(CHANCE.random(len(true)) < right, true, CHANCE.integers(0, outputs, len(true)))
    return np.eye(outputs, dtype=np.float32)[chosen] * 3


def test_a_cycle_of_labels_is_found_and_nothing_else() -> None:
    true = CHANCE.integers(0, 4, 400)
    turned = np.array([1, 2, 0, 3])[true]
    found = of_labels("pocket", TASK, said(turned, 0.9), true)
    assert [one.check for one in found if one.check == "labels"] == ["labels"]
    text = next(one.text for one in found if one.check == "labels")
    assert all(repr(name) in text for name in "abc") and "'d'" not in text
    assert of_labels("pocket", TASK, said(true, 0.9), true) == []
    assert of_labels("teacher", TASK, said(true, 0.5), true) == []


def test_a_rare_pair_among_many_labels_is_found() -> None:
    counts = np.diag(np.full(150, 20)) + CHANCE.integers(0, 2, (150, 150)) // 1
    assert swapped(counts) == []
    counts[[17, 90]] = counts[[90, 17]]
    assert [sorted(cycle) for cycle in swapped(counts)] == [[17, 90]]


def test_chance_is_no_swap() -> None:
    for _ in range(50):
        assert swapped(CHANCE.integers(0, 6, (20, 20))) == []


@pytest.mark.parametrize("right", [0.0, 0.02])
def test_guessing_is_told_from_knowing(right: float) -> None:
    true = np.repeat([0, 0, 1, 2, 3], 80)
    found = of_labels("teacher", TASK, said(true, right), true)
    assert [one.check for one in found] == ["majority"]
    assert "teacher is no better than guessing" in found[0].text


def test_one_label_alone_is_no_fault() -> None:
    true = np.zeros(50, dtype=int)
    assert of_labels("pocket", TASK, said(true, 1.0), true) == []


def test_numbers_that_say_the_opposite_or_nothing() -> None:
    task, true = Task("regression", True), CHANCE.normal(size=200)
    assert of_labels("pocket", task, (true + CHANCE.normal(size=200))[:, None], true) == []
    assert [one.check for one in of_labels("pocket", task, -true[:, None], true)] == ["labels"]
    guessed = of_labels("pocket", task, CHANCE.normal(size=(200, 1)), true)
    assert [one.check for one in guessed] == ["majority"]


def test_tags_in_each_others_place_are_named() -> None:
    task = Task("tokens", False, tags=("O", "B-from", "B-to"))
    labels = [["O", "B-from", "O", "B-to"]] * 40
    place = {"O": 0, "B-from": 2, "B-to": 1}
    words = np.eye(3, dtype=np.float32)[[place[tag] for tags in labels for tag in tags]]
    known, offsets = np.ones(160, dtype=bool), np.arange(0, 161, 4)
    logits = WordLogits(np.zeros((40, 0), dtype=np.float32), words, known, offsets, [("a b c d",)] * 40)
    found = [one for one in of_labels("pocket", task, logits, labels) if one.check == "labels"]
    assert len(found) == 1 and "'B-from'" in found[0].text and "'O'" not in found[0].text

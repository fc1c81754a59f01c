"""Losses on the true labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from pocketlm.data.examples import Examples
from pocketlm.supervised import (
    fold_scale,
    label_loss,
    supervised,
    supervised_words,
    target_scale,
    targets_of,
)
from pocketlm.tasks.task import Task
from tests.tiny import NO_DEADLINE
from tests.tiny_models import (
    ARCHITECTURES,
    JOINT,
    MANY,
    ON_WORDS,
    PAIR,
    QUESTION,
    SINGLE,
    TAGGED,
    VALUE,
    Architecture,
    classifier,
    examples_of,
)

numbers = st.lists(st.floats(-1000, 1000), min_size=2, max_size=30)


@given(labels=numbers)
@example(labels=[0.0, 2.75e-288])
@NO_DEADLINE
def test_scaled_targets_have_mean_0_and_deviation_1(labels: list[float]) -> None:
    mean, scale = target_scale(Examples([("a",)] * len(labels), labels), VALUE)
    assert scale > 0
    targets = (np.asarray(labels) - mean) / scale
    assert abs(targets.mean()) < 1e-6
    if max(labels) - min(labels) > 1e-3:
        assert targets.std() == pytest.approx(1)
    assert np.allclose(targets * scale + mean, labels, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_equal_targets_are_not_blown_up(value: float) -> None:
    mean, scale = target_scale(Examples([("a",)] * 7, [value] * 7), VALUE)
    assert (mean, scale) == (pytest.approx(value), 1.0)


def test_labels_of_a_classification_are_not_scaled() -> None:
    assert target_scale(examples_of(SINGLE, 5), SINGLE) == (0.0, 1.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (2.5, 1.4), (-70.0, 30.0)])
def test_a_folded_head_gives_the_labels_own_scale(
    architecture: Architecture, mean: float, scale: float
) -> None:
    made = classifier(architecture, VALUE)
    encoded = made.encode(examples_of(VALUE, 8).texts)
    before = made.logits(encoded)
    fold_scale(made.model, mean, scale)
    assert np.allclose(made.logits(encoded), before * scale + mean, rtol=1e-5, atol=1e-4)


@given(targets=st.lists(st.integers(0, 2), min_size=1, max_size=5), data=st.data())
@NO_DEADLINE
def test_the_supervised_loss_is_the_reference_for_every_example(
    targets: list[int], data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 1000))
    logits = torch.randn(len(targets), 3, generator=torch.Generator().manual_seed(seed))
    losses = supervised(logits, torch.tensor(targets, dtype=torch.float64), SINGLE)
    for row, target in enumerate(targets):
        assert losses[row] == pytest.approx(
            float(F.cross_entropy(logits[row], torch.tensor(target))), abs=1e-6
        )
    values = supervised(logits[:, :1], torch.tensor(targets, dtype=torch.float64), VALUE)
    assert values.shape == (len(targets),) and values.dtype == torch.float32
    assert values.tolist() == pytest.approx(
        [(float(logit) - target) ** 2 for logit, target in zip(logits[:, 0], targets, strict=True)], abs=1e-5
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE, MANY, *ON_WORDS], ids=lambda task: task.kind)
def test_padding_never_changes_a_loss(architecture: Architecture, task: Task) -> None:
    made = classifier(architecture, task)
    examples = examples_of(task, 9)
    loss = label_loss(made, made.encode(examples.texts), targets_of(examples, task, 0.0, 100.0))
    with torch.no_grad():
        together = loss(made.model, range(9))
        alone = torch.cat([loss(made.model, [index]) for index in range(9)])
        backwards = loss(made.model, [8, 3, 0])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(backwards, alone[[8, 3, 0]], atol=1e-5)


def test_several_labels_are_binary_cross_entropies() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -4.0]])
    targets = targets_of(Examples([("a",), ("b",)], [[0, 2], []]), MANY)
    assert targets.text.tolist() == [[1, 0, 1], [0, 0, 0]]
    losses = supervised(logits, targets.text, MANY)
    chance = torch.sigmoid(logits)
    wanted = -torch.where(targets.text > 0, chance, 1 - chance).log().mean(dim=1)
    assert torch.allclose(losses, wanted, atol=1e-6)


def test_an_intent_and_a_tag_that_train_lacks_are_in_no_loss() -> None:
    labels = [{"intent": -1, "tags": ["B-new", "O"]}, {"intent": 1, "tags": ["O"]}]
    targets = targets_of(Examples([("a b",), ("c",)], labels), JOINT)
    assert targets.text.tolist() == [-1, 1]
    assert targets.words.tolist() == [[-1, 2], [2, -1]]
    text = supervised(torch.randn(2, 3), targets.text, JOINT)
    assert text[0] == 0 and text[1] > 0
    logits = torch.randn(2, 2, 3)
    mask = torch.tensor([[True, True], [True, False]])
    losses = supervised_words(logits, targets.words, mask, JOINT)
    assert losses.tolist() == pytest.approx(
        [float(-logits[row, 1 - row].log_softmax(0)[2]) for row in (0, 1)]
    )


def test_words_that_were_cut_off_are_in_no_loss() -> None:
    logits, targets = torch.randn(2, 3, 3), torch.tensor([[0, 1, 2], [2, 2, -1]])
    mask = torch.tensor([[True, False, True], [False, False, False]])
    losses = supervised_words(logits, targets, mask, TAGGED)
    both = [-logits[0, word].log_softmax(0)[tag] for word, tag in ((0, 0), (2, 2))]
    assert losses.tolist() == pytest.approx([float(sum(both)) / 2, 0.0])


def test_the_ends_of_an_answer_are_chosen_among_the_words_that_were_seen() -> None:
    logits = torch.randn(3, 4, 2)
    mask = torch.tensor([[True, True, True, False], [True, True, False, False], [False] * 4])
    targets = torch.tensor([[1, 2], [0, 2], [0, 0]])
    losses = supervised_words(logits, targets, mask, QUESTION)
    start, end = logits[0, :3, 0].log_softmax(0), logits[0, :3, 1].log_softmax(0)
    first = -float(start[1] + end[2]) / 2
    second = -float(logits[1, :2, 0].log_softmax(0)[0]) / 2  # its end was cut off
    assert losses.tolist() == pytest.approx([first, second, 0.0])
    assert supervised_words(torch.zeros(2, 0, 2), targets[:2], mask[:2, :0], QUESTION).tolist() == [0, 0]


def test_gradients_of_word_losses_match_finite_differences() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    for task, targets in (
        (TAGGED, torch.tensor([[0, -1, 2], [1, 1, 1]])),
        (QUESTION, torch.tensor([[1, 1], [0, 2]])),
    ):
        logits = torch.randn(2, 3, task.word_outputs, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(lambda x, t=targets, k=task: supervised_words(x, t, mask, k), (logits,))

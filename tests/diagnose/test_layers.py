"""How alike two representations are, whatever their width and basis."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import pytest

from pocketlm.diagnose.layers import cka, likeness
from tests.tiny_models import classifier

CHANCE = np.random.default_rng(0)
TEXTS = [(f"a {word} film of the {other}",) for word in "abcdefgh" for other in "ijklmnop"]


def test_a_turned_and_scaled_representation_is_the_same() -> None:
    one = CHANCE.normal(size=(200, 16))
    turn, _ = np.linalg.qr(CHANCE.normal(size=(16, 16)))
    assert cka(one, 3 * one @ turn + 5) == pytest.approx(1)
    assert cka(one, one[:, :8]) > 0.5
    assert cka(one, CHANCE.normal(size=(200, 8))) < 0.2
    assert cka(one, np.ones((200, 3))) == 0


def test_a_model_is_most_like_itself_layer_by_layer() -> None:
    model = classifier(layers=3)
    found = likeness(model, model, TEXTS)
    assert [(one.layer, one.teacher) for one in found] == [(index, index) for index in range(4)]
    assert [one.cka for one in found] == pytest.approx([1.0] * 4)


def test_a_student_of_some_layers_is_like_these() -> None:
    teacher = classifier(layers=4)
    student = copy.deepcopy(teacher)
    encoder = cast(Any, student.model).base_model.encoder
    encoder.layer = encoder.layer[:2]
    assert [one.teacher for one in likeness(student, teacher, TEXTS)] == [0, 1, 2]

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pocketlm.distill.losses import attention_mse, relation_kl
from pocketlm.distill.pairs import (
    Said,
    attention_layers,
    check_heads,
    layer_map_of,
    pair_of,
    relation_heads_of,
    relations_distance,
    scores_distance,
    uniform_map,
)
from pocketlm.distill.states import attention_of, attention_scores, relations
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier
from tests.tiny_models import ARCHITECTURES, Architecture, classifier

TEXTS = [("a quiet film of the plot",), ("",), ("naïve café 日本 😀",)]


def states_of(model: Classifier) -> tuple[list[Tensor], Tensor]:
    """All states of the texts, and the positions."""
    inputs = model.inputs(model.encode(TEXTS), [0, 1, 2])
    states = model.model.base_model(**inputs, output_hidden_states=True).hidden_states
    mask = inputs["attention_mask"].bool()
    return list(states), torch.where(mask, torch.arange(mask.shape[1]), -1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_teacher_is_no_distance_from_itself(architecture: Architecture) -> None:
    teacher = classifier(architecture)
    states, positions = states_of(teacher)
    said = Said(dict(enumerate(states)), positions)
    for layer in range(3):
        pair = pair_of(teacher.model, teacher.model, layer, layer)
        check_heads([pair])
        assert scores_distance(pair, states, said).abs().max() < 1e-9
        assert relations_distance(pair, states, said, 4).abs().max() < 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_distances_are_those_of_both_sides_states(architecture: Architecture) -> None:
    student, teacher = classifier(architecture, layers=2, seed=1), classifier(architecture)
    ours, positions = states_of(student)
    theirs, _ = states_of(teacher)
    said = Said({2: theirs[2]}, positions)
    pair = pair_of(student.model, teacher.model, 1, 2)
    assert (pair.student_state, pair.teacher_state) == (1, 2)
    one, two = attention_of(student.model, 1), attention_of(teacher.model, 2)
    wanted = attention_mse(attention_scores(one, ours[1]), attention_scores(two, theirs[2]), said.mask)
    assert torch.allclose(scores_distance(pair, ours, said), wanted)
    each = [
        relation_kl(mine, other, said.mask, 8)
        for mine, other in zip(relations(one, ours[1]), relations(two, theirs[2]), strict=True)
    ]
    assert torch.allclose(relations_distance(pair, ours, said, 8), sum(each, torch.zeros(3)))
    by_weight = relations_distance(pair, ours, said, 8, (0.5, 0.0, 2.0))
    assert torch.allclose(by_weight, 0.5 * each[0] + 2 * each[2])


def test_only_the_student_gets_gradients() -> None:
    student, teacher = classifier(layers=2, seed=1), classifier()
    ours, positions = states_of(student)
    theirs, _ = states_of(teacher)
    said = Said({2: theirs[2].detach()}, positions)
    pair = pair_of(student.model, teacher.model, 1, 2)
    (scores_distance(pair, ours, said) + relations_distance(pair, ours, said, 4)).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    grad = student.model.get_input_embeddings().weight.grad
    assert grad is not None and grad.any()


def test_states_in_fewer_directions_come_back_as_well_as_they_can() -> None:
    basis = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(0))).Q
    inside = torch.randn(1, 3, 2) @ basis.T
    said = Said({1: inside @ basis, 2: inside}, torch.zeros(1, 3), {1: basis})
    assert torch.allclose(said.whole(1), inside, atol=1e-5)
    assert torch.equal(said.whole(2), inside)


@pytest.mark.parametrize(
    ("layers", "depth", "wanted"),
    [(4, 12, (0, 3, 6, 9, 12)), (6, 12, (0, 2, 4, 6, 8, 10, 12)), (3, 3, (0, 1, 2, 3)), (2, 5, (0, 2, 5))],
)
def test_a_uniform_map_is_the_papers(layers: int, depth: int, wanted: tuple[int, ...]) -> None:
    assert uniform_map(layers, depth) == wanted


def test_a_map_is_as_given_or_of_the_kept_layers_or_uniform() -> None:
    assert layer_map_of((0, 4, 4), {"teacher_layers": [1, 3]}, 2, 6) == (0, 4, 4)
    assert layer_map_of(None, {"teacher_layers": [0, 5]}, 2, 6) == (0, 1, 6)
    assert layer_map_of(None, {"teacher_layers": None}, 2, 6) == (0, 3, 6)
    assert layer_map_of(None, {}, 2, 6) == (0, 3, 6)


@pytest.mark.parametrize("layer_map", [(0, 1), (0, 1, 2, 3), (0, 1, 7), (-1, 1, 2)])
def test_a_map_that_does_not_fit_is_refused(layer_map: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError) as error:
        layer_map_of(layer_map, {}, 2, 6)
    assert str(error.value) == (
        f"layer_map={list(layer_map)} does not fit: give one of the teacher's states 0 to 6 for the "
        "student's embeddings and for each of its 2 layers"
    )


def test_a_layers_attention_is_that_of_the_layer_that_ends_in_its_state() -> None:
    assert attention_layers((0, 3, 6, 9, 12)) == (2, 5, 8, 11)
    with pytest.raises(
        RecipeError, match=r"layer_map=\[0, 0, 2\] maps a student layer to state 0, .*map it to 1"
    ):
        attention_layers((0, 0, 2))


def test_scores_of_another_number_of_heads_are_refused() -> None:
    student = classifier(layers=2, num_attention_heads=2)
    with pytest.raises(RecipeError) as error:
        check_heads([pair_of(student.model, classifier().model, 1, 2)])
    assert str(error.value) == (
        "attention scores are compared head by head, but layer 1 of the student has 2 heads and layer 2 of "
        "the teacher 4; give the student 4 heads, or set attention: 0 and compare relations, which need no "
        "equal number"
    )


def test_relation_heads_divide_both_widths() -> None:
    narrow = classifier(hidden_size=24, num_attention_heads=3).model
    wide = classifier().model  # 32 wide
    assert relation_heads_of(None, narrow, wide) == 8
    assert relation_heads_of(None, wide, wide) == 32
    assert relation_heads_of(4, narrow, wide) == 4
    with pytest.raises(RecipeError) as error:
        relation_heads_of(12, narrow, wide)
    assert str(error.value) == (
        "relation_heads=12 does not divide the widths 24 of the student and 32 of the teacher; try one of "
        "1, 2, 4, 8"
    )

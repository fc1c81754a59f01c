"""Which state or layer of a student learns from which of its teacher, and how far apart they are.

Layers and states are numbered as in `pocketlm.distill.states`: layer i reads state i and ends in
state i + 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pocketlm.distill.losses import attention_mse, relation_kl
from pocketlm.distill.states import (
    Attention,
    attention_of,
    attention_scores,
    check_scores,
    relations,
    width_of,
)
from pocketlm.errors import RecipeError


@dataclass(frozen=True)
class Said:
    """What a teacher says of some texts, at a student's positions.

    Args:
        values: State to what was kept of it, [batch, length, width], anything at padding.
        positions: Where every position's counterpart stands in the teacher's own input,
            [batch, length]; -1 at padding and where there is none.
        bases: State to the directions it was kept in, [teacher's width, width]; none for a whole one.
    """

    values: Mapping[int, Tensor]
    positions: Tensor
    bases: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])

    @property
    def mask(self) -> Tensor:
        """True where there is a counterpart, [batch, length]."""
        return self.positions >= 0

    def whole(self, state: int) -> Tensor:
        """A state in the teacher's own space, as well as what was kept of it tells.

        Returns:
            [batch, length, teacher's width].
        """
        values, basis = self.values[state], self.bases.get(state)
        return values if basis is None else values @ basis.T


class TeacherStates(Protocol):
    """Where a teacher's states come from: a store, or the teacher itself."""

    @property
    def width(self) -> int:
        """Features of a state as it is told."""
        ...

    def states_of(self, indices: Sequence[int], states: Sequence[int]) -> Said:
        """Some of the teacher's states of the texts `indices`, padded as the student's inputs are."""
        ...


@dataclass(frozen=True)
class Pair:
    """A layer of the student and the layer of the teacher that its attention learns from.

    Args:
        student: Attention of the student's layer.
        teacher: Attention of the teacher's, frozen.
        student_state: The state that the student's layer reads.
        teacher_state: The state that the teacher's layer reads.
    """

    student: Attention
    teacher: Attention
    student_state: int
    teacher_state: int


def pair_of(student: nn.Module, teacher: nn.Module, layer: int, teacher_layer: int) -> Pair:
    """Pair a student's layer with one of the teacher, 0 the first of each.

    Raises:
        TeacherError: the attention of one of them is not known.
    """
    return Pair(attention_of(student, layer), attention_of(teacher, teacher_layer), layer, teacher_layer)


def scores_distance(pair: Pair, states: Sequence[Tensor], said: Said) -> Tensor:
    """`attention_mse` of a pair of layers, [batch].

    Args:
        pair: With as many heads on both sides.
        states: The student's live states, each [batch, length, width].
        said: With the state that the teacher's layer reads.
    """
    with torch.no_grad():
        positions = said.positions.clamp_min(0)
        wanted = attention_scores(pair.teacher, said.whole(pair.teacher_state), positions)
    scores = attention_scores(pair.student, states[pair.student_state])
    return attention_mse(scores.float(), wanted.float(), said.mask)


def relations_distance(
    pair: Pair, states: Sequence[Tensor], said: Said, heads: int, weights: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """Weighted sum of `relation_kl` over queries, keys and values of a pair of layers, [batch].

    Args:
        pair: Of any widths that `heads` divides.
        states: The student's live states, each [batch, length, width].
        said: With the state that the teacher's layer reads.
        heads: Relation heads.
        weights: Of queries, keys and values.
    """
    with torch.no_grad():
        wanted = relations(pair.teacher, said.whole(pair.teacher_state))
    ours = relations(pair.student, states[pair.student_state])
    total = torch.zeros(len(said.positions))
    for weight, mine, theirs in zip(weights, ours, wanted, strict=True):
        if weight:
            total = total + weight * relation_kl(mine.float(), theirs.float(), said.mask, heads)
    return total


def check_heads(pairs: Sequence[Pair]) -> None:
    """Refuse pairs whose attention scores cannot be compared.

    Raises:
        RecipeError: another number of heads, or scores that do not follow from a state.
    """
    for pair in pairs:
        check_scores(pair.student)
        check_scores(pair.teacher)
        ours, theirs = pair.student.heads, pair.teacher.heads
        if ours != theirs:
            raise RecipeError(
                f"attention scores are compared head by head, but layer {pair.student_state} of the student "
                f"has {ours} heads and layer {pair.teacher_state} of the teacher {theirs}; give the student "
                f"{theirs} heads, or set attention: 0 and compare relations, which need no equal number"
            )


def relation_heads_of(given: int | None, student: nn.Module, teacher: nn.Module) -> int:
    """Number of relation heads for two models.

    Args:
        given: As set in a recipe; None takes the most up to 48 (MiniLMv2, section 4.1, of base-size
            teachers) that divide both widths.
        student: The student.
        teacher: The teacher.

    Raises:
        RecipeError: it does not divide both widths.
    """
    ours, theirs = width_of(student), width_of(teacher)
    common = math.gcd(ours, theirs)
    divisors = [heads for heads in range(1, common + 1) if common % heads == 0]
    if given is None:
        return max(heads for heads in divisors if heads <= 48)
    if given not in divisors:
        raise RecipeError(
            f"relation_heads={given} does not divide the widths {ours} of the student and {theirs} of the "
            f"teacher; try one of {', '.join(map(str, divisors[-6:]))}"
        )
    return given


def uniform_map(layers: int, depth: int) -> tuple[int, ...]:
    """TinyBERT's g(m): teacher's states for the student's embeddings and layers, evenly spread.

    4 layers of 12 is (0, 3, 6, 9, 12); where they do not divide, the last stays with the last.
    """
    return tuple(index * depth // layers for index in range(layers + 1))


def layer_map_of(given: Sequence[int] | None, shape: Any, layers: int, depth: int) -> tuple[int, ...]:
    """Teacher's state for every state of the student.

    Args:
        given: As set in a recipe; None takes every kept layer as its own teacher, and spreads evenly
            where the student was not cut out of the teacher.
        shape: The student's shape as its stage told it.
        layers: Layers of the student.
        depth: Layers of the teacher.

    Raises:
        RecipeError: it does not fit the two models.
    """
    if given is None:
        kept = shape.get("teacher_layers") or ()
        given = (0, *(layer + 1 for layer in kept)) if len(kept) == layers else uniform_map(layers, depth)
    layer_map = tuple(given)
    if len(layer_map) != layers + 1 or any(not 0 <= state <= depth for state in layer_map):
        raise RecipeError(
            f"layer_map={list(layer_map)} does not fit: give one of the teacher's states 0 to {depth} "
            f"for the student's embeddings and for each of its {layers} layers"
        )
    return layer_map


def attention_layers(layer_map: Sequence[int]) -> tuple[int, ...]:
    """The teacher's layer whose attention a student layer learns: the one that ends in its state.

    Raises:
        RecipeError: a student layer is mapped to the teacher's embeddings, which attend to nothing.
    """
    if any(state == 0 for state in layer_map[1:]):
        raise RecipeError(
            f"layer_map={list(layer_map)} maps a student layer to state 0, the teacher's embeddings, "
            "which have no attention; map it to 1 or more, or set attention: 0"
        )
    return tuple(state - 1 for state in layer_map[1:])

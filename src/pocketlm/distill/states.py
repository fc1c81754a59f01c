"""Queries, keys, values and attention scores, computed again from a layer's input state.

A layer's attention follows from the state that it reads, so it is enough to store states: the
teacher's frozen maps give its scores and relations back, at whichever positions were kept. The same
functions work on a student's live states, so no hook has to be put into any model.

States are numbered as transformers does: 0 is the output of the embeddings, i that of layer i - 1.
Layer i reads state i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pocketlm.errors import RecipeError, TeacherError
from pocketlm.models.families import FAMILIES
from pocketlm.models.uneven import is_uneven


@dataclass(frozen=True)
class Attention:
    """The maps of one layer's attention.

    Args:
        maps: Of queries, keys and values.
        heads: Attention heads.
        norm: Applied to the state first, in a model that normalizes before its layers.
        relative: MPNet's table of relative positions, which is added to the scores.
        scores_type: Type of model whose scores need more than the state; None where they do not.
    """

    maps: tuple[nn.Module, nn.Module, nn.Module]
    heads: int
    norm: nn.Module | None = None
    relative: RelativePositions | None = None
    scores_type: str | None = None


@dataclass(frozen=True)
class RelativePositions:
    """MPNet's table of relative positions, shared by its layers.

    Args:
        table: A number for each head, of every bucket of distances.
        buckets: Number of buckets.
        bucket_of: Maps distances to buckets.
    """

    table: nn.Embedding
    buckets: int
    bucket_of: Any


def attention_of(model: nn.Module, layer: int) -> Attention:
    """The attention of a model's layer `layer`, 0 the first.

    Raises:
        TeacherError: the model is of a type whose attention is not known here.
    """
    network = cast(Any, model)
    kind = network.config.model_type
    family = FAMILIES.get(kind)
    if family is None:
        raise TeacherError(
            f"the attention of a model of type {kind!r} is not known; use one of {', '.join(FAMILIES)}, "
            "or leave attention and relations out of the loss"
        )
    if is_uneven(network.config):
        raise TeacherError(
            "the layers of this model have heads of their own number, as structured pruning leaves them, so "
            "its attention cannot be compared; leave attention and relations out of the loss"
        )
    base = network.base_model
    block = _albert_layer(network, layer) if family.shared else base.get_submodule(family.stack)[layer]
    query, key, value = (block.get_submodule(path) for path in (family.query, family.key, family.value))
    return Attention(
        maps=(query, key, value),
        heads=network.config.num_attention_heads,
        norm=block.get_submodule(family.attention_norm) if family.pre_norm else None,
        relative=_relative_positions(base.encoder) if kind == "mpnet" else None,
        scores_type=kind if kind == "deberta-v2" else None,
    )


def _albert_layer(network: Any, layer: int) -> Any:
    """ALBERT's layers share weights: a group of a few is passed through again and again."""
    config, groups = network.config, network.base_model.encoder.albert_layer_groups
    turn, place = divmod(layer, config.inner_group_num)
    return groups[turn * config.num_hidden_groups // config.num_hidden_layers].albert_layers[place]


def _relative_positions(encoder: Any) -> RelativePositions:
    table = encoder.relative_attention_bias
    # The number of buckets is fixed in the encoder's own call, whatever the table has.
    return RelativePositions(table, 32, encoder.relative_position_bucket)


def relations(attention: Attention, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all heads side by side, each [batch, length, width].

    Of a DeBERTa they are those of the pieces alone; the ones of its relative positions are left out.

    Args:
        attention: Of the layer that reads `state`.
        state: [batch, length, width].
    """
    if attention.norm is not None:
        state = attention.norm(state)
    query, key, value = attention.maps
    return query(state), key(state), value(state)


def attention_scores(attention: Attention, state: Tensor, positions: Tensor | None = None) -> Tensor:
    """Scores before softmax, without the mask: Q Kᵀ / √(width of a head).

    Args:
        attention: Of the layer that reads `state`.
        state: [batch, length, width].
        positions: Where the states stand in the model's own input, [batch, length]; None is 0, 1, ….
            Only a model with relative positions looks at it.

    Returns:
        [batch, heads, length, length].

    Raises:
        RecipeError: scores of this type of model do not follow from the state alone.
    """
    check_scores(attention)
    if attention.norm is not None:
        state = attention.norm(state)
    query, key = (_heads(one(state), attention.heads) for one in attention.maps[:2])
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    relative = attention.relative
    if relative is None:
        return scores
    if positions is None:
        positions = torch.arange(state.shape[1]).expand(state.shape[0], -1)
    distances = positions[:, None, :] - positions[:, :, None]
    buckets = relative.bucket_of(distances, num_buckets=relative.buckets)
    return scores + relative.table(buckets).permute(0, 3, 1, 2)


def check_scores(attention: Attention) -> None:
    """Refuse a model whose scores do not follow from its states.

    Raises:
        RecipeError: it is one.
    """
    if attention.scores_type is not None:
        raise RecipeError(
            f"attention scores of a {attention.scores_type} model depend on embeddings of relative positions "
            "too, so they cannot be computed from its states; set attention: 0, or compare relations"
        )


def _heads(mapped: Tensor, heads: int) -> Tensor:
    batch, length, width = mapped.shape
    return mapped.reshape(batch, length, heads, width // heads).transpose(1, 2)


def depth_of(model: nn.Module) -> int:
    """Number of a model's layers, and of its last state."""
    config = cast(Any, model).config
    return config.num_hidden_layers * (config.inner_group_num if config.model_type == "albert" else 1)


def width_of(model: nn.Module) -> int:
    """Features of a model's states."""
    return cast(Any, model).config.hidden_size

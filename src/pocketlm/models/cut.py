"""Cut a model smaller, in place: layers, neurons, heads, hidden units, pieces, positions.

Every function takes the weights of what is kept and writes the new size into the config. Modules keep
numbers of their own besides (how many heads, how wide a norm is), so a model whose heads or hidden units
were cut runs only after `rebuilt`.

Deviations from head pruning (Michel et al. 2019): transformers wants hidden = heads · head size, so where the
head size has to change, a head is made smaller by the best approximation of lower rank of its scores and
of its output, or larger by units that add nothing yet.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pocketlm.errors import RecipeError, TeacherError
from pocketlm.models.families import (
    encoder_layers,
    family_of,
    hidden_maps,
    layers_of,
    pool_of,
    pooled_maps,
    projection_of,
    stream_of,
)


def rebuilt(model: PreTrainedModel, fresh: bool = False) -> PreTrainedModel:
    """The same model, made anew from its config; with `fresh`, with random weights as its family starts."""
    made = cast(Any, type(model))(copy.deepcopy(model.config))
    if not fresh:
        made.load_state_dict(model.state_dict())
    return cast(PreTrainedModel, made.eval())


def chosen_layers(layers: int | Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Teacher layers that a student keeps: 3 of 6 is (1, 3, 5), and None all of them.

    Raises:
        RecipeError: not strictly ascending within 0 … depth - 1.
    """
    if layers is None:
        return tuple(range(depth))
    if isinstance(layers, int):
        if not 1 <= layers <= depth:
            raise RecipeError(
                f"layers={layers} is out of range; the teacher has {depth}, so allowed: 1 to {depth}"
            )
        return tuple((index + 1) * depth // layers - 1 for index in range(layers))
    chosen = tuple(layers)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= depth:
        raise RecipeError(
            f"layers={list(chosen)} is not a strictly ascending list of the teacher's layers 0 to {depth - 1}"
        )
    return chosen


def keep_layers(model: nn.Module, layers: Sequence[int]) -> None:
    """Keep only the named layers, in place; of a layer that all depths share, only the depth changes."""
    if not family_of(model).shared:
        stack = encoder_layers(model)
        kept = [stack[index] for index in layers]
        del stack[:]
        stack.extend(kept)
    cast(Any, model).config.num_hidden_layers = len(layers)


@torch.no_grad()
def keep_neurons(model: nn.Module, saliency: Sequence[Tensor], size: int) -> None:
    """Keep the `size` most salient FFN neurons of every layer, in place.

    Raises:
        RecipeError: the layers have fewer neurons.
    """
    layers = layers_of(model)
    available = layers[0].falling.in_features
    if not 1 <= size <= available:
        raise RecipeError(
            f"intermediate_size={size} is out of range; the teacher has {available} neurons, "
            f"so allowed: 1 to {available}"
        )
    for layer, scores in zip(layers, saliency, strict=True):
        kept = scores.topk(size).indices.sort().values
        take_rows(layer.rising, kept)
        take_columns(layer.falling, kept)
    setattr(cast(Any, model).config, family_of(model).ffn_size, size)


def chosen_heads(model: nn.Module, saliency: Sequence[Tensor], heads: int) -> list[Tensor]:
    """The most salient heads of every layer, ascending.

    Where all layers read one table of position biases (MPNet), they keep the same heads, those of the largest
    sum of saliencies, each layer's scaled to 1.

    Raises:
        RecipeError: the layers have fewer heads.
    """
    available = len(saliency[0])
    if not 1 <= heads <= available:
        raise RecipeError(
            f"heads={heads} is out of range; the teacher has {available}, so allowed: 1 to {available}"
        )
    if family_of(model).head_bias is not None:
        together = torch.stack([scores / scores.sum().clamp_min(1e-12) for scores in saliency]).sum(dim=0)
        saliency = [together] * len(saliency)
    return [most_salient(scores, heads) for scores in saliency]


@torch.no_grad()
def keep_heads(model: nn.Module, kept: Sequence[Tensor]) -> None:
    """Keep the named heads of every layer, as many in each, in place."""
    config, family = cast(Any, model).config, family_of(model)
    for layer, heads in zip(layers_of(model), kept, strict=True):
        size = layer.query.out_features // config.num_attention_heads
        units = (heads[:, None] * size + torch.arange(size)).flatten()
        for linear in (*layer.queries, *layer.keys, layer.value):
            take_rows(linear, units)
        take_columns(layer.output, units)
    if family.head_bias is not None:
        table = cast(nn.Embedding, cast(Any, model).base_model.get_submodule(family.head_bias))
        table.weight = nn.Parameter(table.weight[:, kept[0]].clone())
        table.embedding_dim = len(kept[0])
    config.num_attention_heads = len(kept[0])


@torch.no_grad()
def resize_heads(
    model: nn.Module, moments: Sequence[tuple[Tensor, Tensor, Tensor]], kept: Sequence[Tensor], size: int
) -> None:
    """Give every head `size` units, in place.

    A smaller head keeps the best approximation of rank `size` of its scores q·k and of its output W_o v, in
    the mean square over calibration texts: with second moments Q and K, the singular value decomposition
    Q^½ K^½ = U S Vᵀ gives q' = S^½ Uᵀ Q^-½ q and k' = S^½ Vᵀ K^-½ k, cut to `size`; likewise W_o C^½ = U S Vᵀ
    gives v' = Vᵀ C^-½ v and W_o' = U S. A larger head gets units with q = 0 and W_o = 0, which add nothing,
    beside random k and v, from which the zeros learn. Scores are divided by √size, so queries are scaled.

    Args:
        model: Its layers have the heads that `kept` names.
        moments: Of the queries, keys and joined values of the teacher's heads: three [heads, size, size] a
            layer.
        kept: Which of the teacher's heads each layer has, ascending.
        size: New head size.
    """
    heads = cast(Any, model).config.num_attention_heads
    if hasattr(cast(Any, model).config, "attention_head_size"):
        cast(Any, model).config.attention_head_size = size
    for layer, (queries, keys, values), chosen in zip(layers_of(model), moments, kept, strict=True):
        before = layer.query.out_features // heads
        if size == before:
            continue
        scale = (size / before) ** 0.5
        if size < before:
            weight = layer.output.weight.reshape(-1, heads, before)
            scores = [_joint_rank(queries[head], keys[head], size) for head in chosen]
            outputs = [_output_rank(weight[:, at], values[head], size) for at, head in enumerate(chosen)]
            for linear in layer.queries:
                _map_rows(linear, scale * _diagonal(*(query for query, _ in scores)))
            for linear in layer.keys:
                _map_rows(linear, _diagonal(*(key for _, key in scores)))
            _map_rows(layer.value, _diagonal(*(value for value, _ in outputs)))
            layer.output.weight = nn.Parameter(torch.cat([output for _, output in outputs], dim=1))
        else:
            spread = torch.zeros(heads, size, heads, before)
            for head in range(heads):
                spread[head, :before, head] = torch.eye(before)
            spread = spread.reshape(heads * size, heads * before)
            empty = spread.sum(dim=1) == 0
            for linear in layer.queries:
                _map_rows(linear, scale * spread)
            layer.output.weight = nn.Parameter(layer.output.weight @ spread.T)
            for linear in (*layer.keys, layer.value):
                deviation = linear.weight.std()
                _map_rows(linear, spread)
                linear.weight[empty] = deviation * torch.randn(int(empty.sum()), linear.in_features)
        layer.output.in_features = heads * size


@torch.no_grad()
def keep_pool(model: nn.Module, units: Tensor) -> None:
    """Keep the named units of the head's pool, ascending, in place; nothing to do without a pool."""
    pool = pool_of(model)
    if pool is not None:
        take_rows(pool, units)
        for linear in pooled_maps(model):
            take_columns(linear, units)


def reader_of(moment: Tensor, basis: Tensor) -> Tensor:
    """How hidden units follow best from their coordinates: R = C P (Pᵀ C P)⁺, so that x ≈ R Pᵀ x.

    Args:
        moment: C, second moment of the hidden units, [hidden, hidden].
        basis: P, [hidden, new hidden].
    """
    whole, turned = moment.double(), basis.double()
    inner = turned.T @ whole @ turned
    inverse = cast(Tensor, torch.linalg.pinv(inner, rtol=1e-6, hermitian=True))
    return (whole @ turned @ inverse).float()


@torch.no_grad()
def project_hidden(model: nn.Module, basis: Tensor, reader: Tensor) -> None:
    """Cut the hidden units to the coordinates on `basis`, in place: W' = Pᵀ W R, E' = E P.

    A norm's γ' is the diagonal of Pᵀ diag(γ) P and its β' is Pᵀ β. Both are exact where the basis is a choice
    of units, and a start for `pocketlm.models.refit` where it turns them.

    Args:
        model: To be cut.
        basis: P, orthonormal columns, [hidden, new hidden].
        reader: R, how the hidden units follow from their coordinates, [hidden, new hidden]; see `reader_of`.

    Raises:
        TeacherError: the model is a DeBERTa-v2 with a convolution.
    """
    config = cast(Any, model).config
    if getattr(config, "conv_kernel_size", 0):
        raise TeacherError(
            f"{type(model).__name__} has a convolution over its hidden units (conv_kernel_size="
            f"{config.conv_kernel_size}), so hidden_size cannot be cut; leave hidden_size: null"
        )
    size = basis.shape[1]
    stream, layers = stream_of(model), layers_of(model)
    readers = [*(linear for layer in layers for linear in layer.readers), *hidden_maps(model)]
    writers = [*stream.writers, *(linear for layer in layers for linear in (layer.output, layer.falling))]
    norms = [*stream.norms, *(norm for layer in layers for norm in (layer.attention_norm, layer.ffn_norm))]
    for linear in readers:
        linear.weight = nn.Parameter(linear.weight @ reader)
        linear.in_features = size
    for linear in writers:
        _map_rows(linear, basis.T)
    for norm in norms:
        norm.weight = nn.Parameter((basis**2).T @ norm.weight)
        norm.bias = nn.Parameter(basis.T @ norm.bias)
        norm.normalized_shape = (size,)
    for table in stream.tables:
        table.weight = nn.Parameter(table.weight @ basis)
        table.embedding_dim = size
    if hasattr(config, "embedding_size") and projection_of(model) is None:
        config.embedding_size = size
    for name in ("hidden_size", "pooler_hidden_size"):
        if hasattr(config, name):
            setattr(config, name, size)


def most_salient(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest, ascending."""
    return scores.topk(count).indices.sort().values


def take_rows(linear: nn.Linear, rows: Tensor) -> None:
    """Keep some outputs of a linear map, in place."""
    linear.weight = nn.Parameter(linear.weight[rows].clone())
    if linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        linear.bias = nn.Parameter(linear.bias[rows].clone())
    linear.out_features = len(rows)


def take_columns(linear: nn.Linear, columns: Tensor) -> None:
    """Keep some inputs of a linear map, in place."""
    linear.weight = nn.Parameter(linear.weight[:, columns].clone())
    linear.in_features = len(columns)


def _map_rows(linear: nn.Linear, to: Tensor) -> None:
    """Put the linear map `to` [new, outputs] behind a linear map."""
    linear.weight = nn.Parameter(to @ linear.weight)
    if linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        linear.bias = nn.Parameter(to @ linear.bias)
    linear.out_features = len(to)


def _joint_rank(queries: Tensor, keys: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Maps [rank, size] of queries and of keys that keep most of their products, given second moments."""
    root_q, inverse_q = _roots(queries)
    root_k, inverse_k = _roots(keys)
    left, values, right = _svd(root_q @ root_k)
    strength = values[:rank].sqrt()[:, None]
    return (strength * left.T[:rank] @ inverse_q).float(), (strength * right[:rank] @ inverse_k).float()


def _output_rank(weight: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A map of values [rank, size] and one to hidden units [hidden, rank] that keep most of weight · v."""
    root, inverse = _roots(moment)
    left, values, right = _svd(weight.double() @ root)
    return (right[:rank] @ inverse).float(), (left[:, :rank] * values[:rank]).float()


def _diagonal(*blocks: Tensor) -> Tensor:
    return cast(Tensor, torch.block_diag(*blocks))  # pyright: ignore[reportUnknownMemberType]


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor, Tensor], torch.linalg.svd(matrix, full_matrices=False))


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Square root of a second moment and its pseudo-inverse, in double precision."""
    values, vectors = cast(tuple[Tensor, Tensor], torch.linalg.eigh(moment.double()))
    floor = values.max().clamp_min(0) * 1e-10
    root = values.clamp_min(0).sqrt()
    inverse = torch.where(values > floor, 1 / root.clamp_min(1e-300), torch.zeros_like(root))
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T

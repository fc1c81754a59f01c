"""Factorised embeddings: a narrow table of pieces, and a linear map from it to the hidden units.

ALBERT (Lan et al. 2020, https://arxiv.org/abs/1909.11942), section 3.1: V·H parameters become V·E + E·H.

Deviations: nothing is trained from the start. Table and map are the truncated singular value decomposition
of the teacher's table, the best approximation of its rank. transformers' BERT has no such map, and ELECTRA's
stands behind a norm, so it can be no factor of a table. DeBERTa-v2's stands where it has to, and without
its relative positions DeBERTa-v2 computes what BERT computes: the student is written as one.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, PreTrainedModel

from pocketlm.errors import RecipeError, TeacherError
from pocketlm.models.families import (
    embedding_tables,
    family_of,
    head_maps,
    layers_of,
    pool_of,
    projection_of,
    stream_of,
)

# The activation of each head between its two maps.
POOL_ACTIVATIONS = {
    "bert": "tanh", "roberta": "tanh", "xlm-roberta": "tanh", "camembert": "tanh", "distilbert": "relu",
    "electra": "gelu",
}  # fmt: skip


@torch.no_grad()
def factorize(model: PreTrainedModel, size: int, counts: Tensor | None = None) -> PreTrainedModel:
    """The model with a table of pieces of `size` columns and a map from these to its hidden units.

    Args:
        model: A classifier, its table not factorised.
        size: Columns of the new table.
        counts: How often each piece is used, [pieces]; the more, the better it is kept. None: all alike.

    Raises:
        RecipeError: `size` is not below the hidden size, or the table is narrow already.
        TeacherError: the family computes something that a DeBERTa-v2 does not.
    """
    config = cast(Any, model.config)
    family, kind = family_of(model), config.model_type
    if projection_of(model) is not None:
        table = embedding_tables(model)[0]
        raise RecipeError(
            f"embedding_size={size}, but the embeddings are factorised already, with {table.embedding_dim} "
            "columns; set embedding_size: null"
        )
    if not 1 <= size < config.hidden_size:
        raise RecipeError(
            f"embedding_size={size} is out of range; allowed: 1 to {config.hidden_size - 1}, or null for none"
        )
    pool, heads = pool_of(model), head_maps(model)
    if kind not in POOL_ACTIVATIONS or pool is None or len(heads) != 1:
        raise TeacherError(
            f"{type(model).__name__} cannot have factorised embeddings; set embedding_size: null, or use a "
            f"classifier of the kinds {', '.join(POOL_ACTIVATIONS)}"
        )
    pieces, positions, segments = _tables(model)
    made = DebertaV2ForSequenceClassification(
        cast(Any, DebertaV2Config)(
            vocab_size=len(pieces), hidden_size=config.hidden_size, embedding_size=size,
            num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
            intermediate_size=getattr(config, family.ffn_size),
            hidden_act=getattr(config, family.activation),
            max_position_embeddings=len(positions), type_vocab_size=len(segments),
            layer_norm_eps=stream_of(model).norms[0].eps, relative_attention=False, pos_att_type=[],
            position_biased_input=True, pooler_hidden_act=POOL_ACTIVATIONS[kind],
            pad_token_id=config.pad_token_id, num_labels=config.num_labels,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pooler_dropout=0.0,
            attn_implementation="eager",
        )
    )  # fmt: skip
    tables, to_hidden = truncated((pieces, positions, segments), size, counts)
    for table, rows in zip(embedding_tables(made), tables, strict=False):
        table.weight.copy_(rows)
    projection = cast(nn.Linear, projection_of(made))
    projection.weight.copy_(to_hidden)
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (stream_of(made).norms[0], stream_of(model).norms[0]),
        (cast(nn.Linear, pool_of(made)), pool),
        (head_maps(made)[0], heads[0]),
    ]
    names = ("query", "key", "value", "output", "rising", "falling", "attention_norm", "ffn_norm")
    for new, old in zip(layers_of(made), layers_of(model), strict=True):
        pairs += [(getattr(new, name), getattr(old, name)) for name in names]
    for new, old in pairs:
        new.load_state_dict(old.state_dict())
    return cast(PreTrainedModel, made.eval())


def truncated(
    tables: tuple[Tensor, ...], size: int, weights: Tensor | None = None
) -> tuple[list[Tensor], Tensor]:
    """Tables and one map whose products best approximate the given tables.

    Args:
        tables: Each [rows, hidden]; all are projected on the principal directions of the first.
        size: Rank.
        weights: Of the squared errors of the first table's rows, [rows].

    Returns:
        The narrow tables, each [rows, size], and the map, [hidden, size].
    """
    rows = tables[0].double() if weights is None else tables[0].double() * weights.double().sqrt()[:, None]
    right = cast(Tensor, torch.linalg.svd(rows, full_matrices=False)[2])
    directions = right[:size].T
    return [(table.double() @ directions).float() for table in tables], directions.float()


def _tables(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of pieces, of positions from the first one on, and of segments (none where all are of one)."""
    tables = [table.weight.detach() for table in embedding_tables(model)]
    pieces, positions = tables[:2]
    padding = embedding_tables(model)[1].padding_idx
    if padding is not None:  # RoBERTa counts from behind its padding piece
        positions = positions[padding + 1 :]
    if len(tables) < 3:
        return pieces, positions, positions[:0]
    if len(tables[2]) == 1:
        return pieces, positions + tables[2], positions[:0]
    return pieces, positions, tables[2]

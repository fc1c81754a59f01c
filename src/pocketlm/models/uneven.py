"""Encoders whose layers are not alike: each with its own heads and neurons, or without attention or FFN.

transformers builds every layer of a model alike. Such a model is built whole from its config, cut layer by
layer to the shapes that the config carries in `uneven`, and then given its weights: nothing but JSON and
safetensors, and no weight of the whole model is kept. A layer without attention or FFN still norms what
passes through, as a mask of zero would leave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pocketlm.errors import TeacherError
from pocketlm.models.cut import take_columns, take_rows
from pocketlm.models.families import Layer, encoder_layers, family_of, layers_of

FIELD = "uneven"
"""What a config calls the heads and the number of neurons of every layer."""
LIKE_BERT = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet")


class NormAlone(nn.Module):
    """In the place of an attention that is not there: what it is given, normed.

    Args:
        norm: The attention's LayerNorm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """The states [batch, length, hidden], and no attention."""
        return self.norm(hidden), None


class NormOfInput(nn.Module):
    """In the place of the end of an FFN that is not there: what the FFN was given, normed.

    Args:
        norm: The FFN's LayerNorm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, _: Tensor, given: Tensor) -> Tensor:
        """[batch, length, hidden]."""
        return self.norm(given)


class SomeHeads(nn.Module):
    """MPNet's attention with some of its heads: each has its column of the bias that all layers share.

    Args:
        attention: With as many heads as are kept.
        kept: Which of the whole model's heads these are.
    """

    def __init__(self, attention: nn.Module, kept: Sequence[int]) -> None:
        super().__init__()
        self.attention = attention
        self.kept = tuple(kept)

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, **options: Any
    ) -> Any:
        """As of the attention; `bias` is of all heads, [batch or 1, heads, length, length]."""
        own = None if bias is None else bias[:, list(self.kept)]
        return self.attention(hidden, mask, own, **options)


@torch.no_grad()
def cut_layers(model: nn.Module, heads: Sequence[Sequence[int]], neurons: Sequence[Sequence[int]]) -> None:
    """Keep the named heads and neurons of every layer, in place; none of either removes the sublayer.

    Args:
        model: Of a family whose layers are built as BERT's.
        heads: Of every layer, ascending.
        neurons: Likewise.

    Raises:
        TeacherError: the family's layers are built otherwise.
    """
    config = cast(Any, model).config
    if config.model_type not in LIKE_BERT:
        raise TeacherError(
            f"the layers of a {config.model_type} cannot be cut one by one; allowed: {', '.join(LIKE_BERT)}"
        )
    stack, parts = encoder_layers(model), layers_of(model)
    shared_bias = family_of(model).head_bias is not None
    for module, layer, own, many in zip(stack, parts, heads, neurons, strict=True):
        size = layer.query.out_features // config.num_attention_heads
        _cut_attention(module, layer, own, size, shared_bias)
        _cut_ffn(module, layer, many)
    shapes = zip(heads, neurons, strict=True)
    setattr(config, FIELD, [{"heads": list(own), "neurons": len(many)} for own, many in shapes])


def _cut_attention(
    module: nn.Module, layer: Layer, heads: Sequence[int], size: int, shared_bias: bool
) -> None:
    if not heads:
        cast(Any, module).attention = NormAlone(layer.attention_norm)
        return
    units = (torch.tensor(heads)[:, None] * size + torch.arange(size)).flatten()
    for linear in (*layer.queries, *layer.keys, layer.value):
        take_rows(linear, units)
    take_columns(layer.output, units)
    if shared_bias:
        inner = cast(Any, module).attention.attn
        inner.num_attention_heads, inner.all_head_size = len(heads), len(units)
        cast(Any, module).attention.attn = SomeHeads(inner, heads)


def _cut_ffn(module: nn.Module, layer: Layer, neurons: Sequence[int]) -> None:
    if not neurons:
        cast(Any, module).intermediate = nn.Identity()
        cast(Any, module).output = NormOfInput(layer.ffn_norm)
        return
    kept = torch.tensor(neurons)
    take_rows(layer.rising, kept)
    take_columns(layer.falling, kept)


def is_uneven(config: Any) -> bool:
    """True where a config carries shapes of single layers."""
    return bool(getattr(config, FIELD, None))


def check_even(model: nn.Module) -> None:
    """Refuse a model of uneven layers, of which nothing more can be cut.

    Raises:
        TeacherError: the model has such layers.
    """
    if is_uneven(cast(Any, model).config):
        raise TeacherError(
            "the layers of this model have shapes of their own, as structured pruning leaves them; it can be "
            "trained, masked, quantized and exported, but not cut again: start from the whole model"
        )


def cut_as_saved(model: nn.Module) -> None:
    """Give a model that was just built whole the shapes that its config carries, in place."""
    shapes: Sequence[Mapping[str, Any]] = getattr(cast(Any, model).config, FIELD)
    cut_layers(model, [shape["heads"] for shape in shapes], [range(shape["neurons"]) for shape in shapes])

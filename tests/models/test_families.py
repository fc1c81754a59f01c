"""Where each family keeps its parts."""

from __future__ import annotations

import pytest
import torch

from pocketlm.errors import TeacherError
from pocketlm.models.families import (
    activation_of,
    attention_modules,
    embedding_tables,
    encoder_layers,
    family_of,
    head_maps,
    layers_of,
    pool_of,
    projection_of,
    stream_of,
)
from tests.tiny_models import FAMILIES, HEADS, NEURONS, WIDTH, Architecture, classifier

every_family = pytest.mark.parametrize("architecture", FAMILIES)


@every_family
def test_every_weight_of_hidden_width_is_a_named_part(architecture: Architecture) -> None:
    """No matrix is overlooked: each belongs to a layer, the stream, the head or the tables."""
    model = classifier(architecture).model
    layers, stream = layers_of(model), stream_of(model)
    parts = [*stream.tables, *stream.writers, *stream.norms, *embedding_tables(model), *head_maps(model)]
    parts += [pool_of(model)]
    for layer in layers:
        parts += [*layer.readers, layer.output, layer.falling, layer.attention_norm, layer.ffn_norm]
    named = {id(parameter) for part in parts for parameter in part.parameters()}
    others = [name for name, parameter in model.named_parameters() if id(parameter) not in named]
    assert [
        name for name in others if "relative_attention_bias" not in name and "LayerNorm" not in name
    ] == []
    for layer in layers:
        assert layer.query.weight.shape == layer.output.weight.shape == (WIDTH, WIDTH)
        assert layer.rising.weight.shape == layer.falling.weight.T.shape == (NEURONS, WIDTH)
    assert len(attention_modules(model)) == len(encoder_layers(model)) == len(layers)


@every_family
def test_the_activation_is_what_stands_between_the_maps(architecture: Architecture) -> None:
    made = classifier(architecture)
    layer = layers_of(made.model)[0]
    seen: list[torch.Tensor] = []
    layer.rising.register_forward_hook(lambda module, given, output: seen.append(output))
    layer.falling.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    made.logits(made.encode([("a quiet film",)]))
    assert torch.allclose(activation_of(made.model)(seen[0]), seen[1], atol=1e-6)


def test_what_is_special_in_a_family() -> None:
    assert family_of(classifier("albert").model).shared
    assert projection_of(classifier("albert").model) is not None
    assert projection_of(classifier("electra", embedding_size=8).model) is not None
    assert family_of(classifier("megatron-bert").model).pre_norm
    bias = classifier("mpnet").model.base_model.get_submodule(family_of(classifier("mpnet").model).head_bias)
    assert bias.weight.shape[1] == HEADS


def test_a_teacher_of_another_family_is_refused() -> None:
    model = classifier("bert").model
    model.config.model_type = "funnel"
    with pytest.raises(
        TeacherError, match="is of model type funnel, which no student can be cut out of; allowed: bert"
    ):
        family_of(model)
    model = classifier("albert").model
    model.config.num_hidden_groups = 2
    with pytest.raises(TeacherError, match="num_hidden_groups=2 and inner_group_num=1; only an ALBERT"):
        encoder_layers(model)

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    CamembertConfig,
    ConvBertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MegatronBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from pocketlm.distill.states import (
    FAMILIES,
    attention_of,
    attention_scores,
    depth_of,
    relations,
    width_of,
)
from pocketlm.errors import RecipeError, TeacherError

SHAPE: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 4,
    "intermediate_size": 30, "max_position_embeddings": 200,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "bert": BertConfig(**SHAPE),
    "roberta": RobertaConfig(**SHAPE),
    "xlm-roberta": XLMRobertaConfig(**SHAPE),
    "camembert": CamembertConfig(**SHAPE),
    "electra": ElectraConfig(**SHAPE, embedding_size=10),
    "megatron-bert": MegatronBertConfig(**SHAPE),
    "mpnet": MPNetConfig(**SHAPE),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=24, n_heads=3, n_layers=4, hidden_dim=30, max_position_embeddings=200
    ),
    "albert": AlbertConfig(**SHAPE, embedding_size=10, num_hidden_groups=2),
}
WITH_SCORES = tuple(CONFIGS)
DEBERTA = DebertaV2Config(**SHAPE, relative_attention=True, pos_att_type=["c2p", "p2c"])


def model_of(config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(length: int = 7, padding: int = 3) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 60, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, length - padding :] = 0
    return ids, mask


@torch.no_grad()
def said(model: nn.Module, ids: Tensor, mask: Tensor) -> Any:
    return model(input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)


def probabilities(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask[:, None, None, :] == 0, -1e30).softmax(-1)


@pytest.mark.parametrize("kind", WITH_SCORES)
def test_scores_are_those_of_transformers(kind: str) -> None:
    model = model_of(CONFIGS[kind])
    ids, mask = batch()
    output = said(model, ids, mask)
    assert depth_of(model) == len(output.attentions) == len(output.hidden_states) - 1
    assert width_of(model) == output.hidden_states[0].shape[-1]
    for layer, wanted in enumerate(output.attentions):
        with torch.no_grad():
            scores = attention_scores(attention_of(model, layer), output.hidden_states[layer])
        text = mask.bool()[:, None, :, None].expand_as(wanted)
        assert torch.allclose(probabilities(scores, mask)[text], wanted[text], atol=1e-5), layer


def test_layers_of_an_albert_group_are_told_apart() -> None:
    model = model_of(AlbertConfig(**{**SHAPE, "num_hidden_layers": 2}, embedding_size=10, inner_group_num=2))
    ids, mask = batch()
    output = said(model, ids, mask)
    assert depth_of(model) == len(output.attentions) == 4
    for layer, wanted in enumerate(output.attentions):
        with torch.no_grad():
            scores = attention_scores(attention_of(model, layer), output.hidden_states[layer])
        assert torch.allclose(probabilities(scores, mask)[0], wanted[0], atol=1e-5), layer


def test_relative_positions_are_those_of_the_models_own_input() -> None:
    """Of a longer input some positions are kept, one of them twice, as a finer tokenizer asks for."""
    model = model_of(CONFIGS["mpnet"])
    ids, mask = batch(150, 0)
    output = said(model, ids, mask)
    positions = torch.tensor([0, 3, 3, 40, 149]).expand(2, -1)
    for layer in (0, 3):
        attention, state = attention_of(model, layer), output.hidden_states[layer]
        with torch.no_grad():
            whole = attention_scores(attention, state)
            part = attention_scores(attention, state[:, positions[0]], positions)
            wrong = attention_scores(attention, state[:, positions[0]])
        wanted = whole[:, :, positions[0]][:, :, :, positions[0]]
        assert torch.allclose(part, wanted, atol=1e-5)
        assert not torch.allclose(wrong, wanted, atol=1e-2)


@pytest.mark.parametrize("kind", [*CONFIGS, "deberta-v2"])
def test_queries_and_keys_give_the_scores_and_values_the_context(kind: str) -> None:
    """Each map is caught in the act: what transformers' own layer computes."""
    model = model_of(CONFIGS.get(kind, DEBERTA))
    ids, mask = batch()
    attention = attention_of(model, depth_of(model) - 1)
    caught: list[Tensor] = []
    hooks = [one.register_forward_hook(lambda _, __, out: caught.append(out)) for one in attention.maps]
    output = said(model, ids, mask)
    for hook in hooks:
        hook.remove()
    # Layers that share weights ran before, and DeBERTa maps its positions in the same modules.
    caught = [one for one in caught if one.shape == (2, 7, 24)][-3:]
    with torch.no_grad():
        found = relations(attention, output.hidden_states[depth_of(model) - 1])
    assert len(caught) == 3
    for one, two in zip(found, caught, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_scores_of_deberta_are_refused() -> None:
    attention = attention_of(model_of(DEBERTA), 0)
    with pytest.raises(RecipeError) as error:
        attention_scores(attention, torch.zeros(1, 2, 24))
    assert str(error.value) == (
        "attention scores of a deberta-v2 model depend on embeddings of relative positions too, so they "
        "cannot be computed from its states; set attention: 0, or compare relations"
    )


def test_another_type_is_refused() -> None:
    model = model_of(ConvBertConfig(**{**SHAPE, "hidden_size": 32, "num_attention_heads": 4}))
    with pytest.raises(TeacherError, match=r"type 'convbert' is not known; use one of bert, roberta, .*"):
        attention_of(model, 0)


def test_every_family_is_tested() -> None:
    assert {*CONFIGS, "deberta-v2"} == {*FAMILIES}


def test_a_students_scores_have_gradients() -> None:
    model = model_of(CONFIGS["bert"])
    ids, mask = batch()
    states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    attention = attention_of(model, 1)
    attention_scores(attention, states[1]).square().sum().backward()
    for one in attention.maps[:2]:
        weight = one.get_parameter("weight")
        assert weight.grad is not None and weight.grad.abs().max() > 0

"""Pruning a decoder layer after layer: what is calibrated on, what goes, and what a text costs afterwards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pocketlm.errors import RecipeError, TeacherError
from pocketlm.models.decoder import Decoder, load_decoder, perplexity, windows
from pocketlm.prune.decoder import decoder_layers, first_inputs, grams, prune_layers
from tests.tiny import sentences, tokenizer

TEXTS = sentences(400)
VALID = sentences(80, seed=1)
LENGTH = 24


@pytest.fixture(scope="module")
def trained() -> Decoder:
    return decoder_that_has_read(TEXTS)


def decoder_that_has_read(texts: list[str]) -> Decoder:
    """A tiny LLaMA that was trained on some sentences."""
    torch.manual_seed(0)
    pieces = tokenizer("wordpiece")
    config = LlamaConfig(
        vocab_size=pieces.get_vocab_size(), max_position_embeddings=64, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    decoder = Decoder(model, pieces)
    read = windows(decoder.ids(texts), LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        rows = read[torch.randperm(len(read))[:16]]
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del step
    model.eval()
    return decoder


def pruned(decoder: Decoder, **options: Any) -> Decoder:
    made = Decoder(copy.deepcopy(decoder.model), decoder.tokenizer)
    prune_layers(made, TEXTS, samples=20, length=LENGTH, **options)
    return made


def test_perplexity_is_that_of_the_mean_loss(trained: Decoder) -> None:
    ids = trained.ids(VALID)
    read = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    with torch.no_grad():
        losses = [float(trained.model(input_ids=row[None], labels=row[None]).loss) for row in read]
    found = perplexity(trained, ids, LENGTH)
    assert found == pytest.approx(float(torch.tensor(losses).mean().exp()), rel=1e-4)
    assert 1 < found < trained.tokenizer.get_vocab_size()
    with pytest.raises(TeacherError, match=f"fewer than one window of {len(ids) + 1}"):
        perplexity(trained, ids, len(ids) + 1)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_half_of_every_map_goes_and_nothing_else_changes(trained: Decoder, method: Any, pattern: Any) -> None:
    made = pruned(trained, method=method, pattern=pattern)
    before = dict(trained.model.named_parameters())
    maps = {
        name for name, module in made.model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }  # fmt: skip
    for name, weight in made.model.named_parameters():
        if name.removesuffix(".weight") in maps:
            assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
        else:
            assert torch.equal(weight, before[name])


def test_the_order_of_the_papers_holds(trained: Decoder) -> None:
    ids = trained.ids(VALID)
    found = {
        method: perplexity(pruned(trained, method=method, sparsity=0.6), ids, LENGTH)
        for method in ("magnitude", "sparsegpt")
    }
    dense = perplexity(trained, ids, LENGTH)
    assert dense < found["sparsegpt"] < found["magnitude"]


def test_a_layer_is_calibrated_on_what_it_is_given(trained: Decoder) -> None:
    read_ids = trained.ids(TEXTS)[: 3 * LENGTH].reshape(3, LENGTH)
    layers = decoder_layers(trained.model)
    states, options = first_inputs(trained.model, layers[0], read_ids)
    embedded = trained.model.get_input_embeddings()(read_ids)
    assert torch.allclose(torch.cat(states), embedded)
    with torch.no_grad():
        read = layers[0].input_layernorm(embedded).reshape(-1, 32)
        (query, gram), *_ = grams(layers[0], states, options)
    assert query is layers[0].self_attn.q_proj
    assert torch.allclose(gram, read.T @ read, rtol=1e-3, atol=1e-3)


def test_a_pruned_decoder_survives_a_folder(trained: Decoder, tmp_path: Path) -> None:
    made = pruned(trained)
    made.save(tmp_path)
    again = load_decoder(tmp_path)
    ids = trained.ids(VALID)
    assert perplexity(again, ids, LENGTH) == pytest.approx(perplexity(made, ids, LENGTH), rel=1e-4)
    assert again.ids(VALID).tolist() == ids.tolist()


def test_what_cannot_be_pruned_is_told(trained: Decoder, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="fewer than one window of 256; give more"):
        prune_layers(trained, ["a film"])
    with pytest.raises(TeacherError, match="holds no causal language model that transformers can read"):
        load_decoder(tmp_path)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    with pytest.raises(TeacherError, match="GPT2LMHeadModel has no list of layers called layers"):
        decoder_layers(gpt)

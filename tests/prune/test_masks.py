"""Masks: how many are removed, which, and that nothing brings a removed weight back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pocketlm.errors import RecipeError
from pocketlm.models.families import layers_of
from pocketlm.prune.masks import (
    held,
    keep_best,
    keep_n_of_m,
    load_masks,
    prunable,
    random_masks,
    remove,
    save_masks,
    sparsity_of,
)
from tests.tiny import NO_DEADLINE
from tests.tiny_models import FAMILIES, Architecture, classifier

SHAPES = {"first": (6, 8), "second": (4, 3, 2, 2), "third": (5, 4)}
WEIGHTS = sum(torch.Size(shape).numel() for shape in SHAPES.values())


def scores(seed: int, levels: int = 7) -> dict[str, torch.Tensor]:
    """Scores with many equal ones among them."""
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randint(levels, shape, generator=chance).float() for name, shape in SHAPES.items()}


@NO_DEADLINE
@given(st.integers(0, 99), st.floats(0, 0.999), st.sampled_from([2, 7, 1000]))
def test_exactly_the_asked_share_goes_and_it_is_the_lowest(seed: int, sparsity: float, levels: int) -> None:
    given_scores = scores(seed, levels)
    masks = keep_best(given_scores, sparsity)
    removed = torch.cat([given_scores[name][~mask] for name, mask in masks.items()])
    kept = torch.cat([given_scores[name][mask] for name, mask in masks.items()])
    assert len(removed) == round(sparsity * WEIGHTS)
    assert not len(removed) or not len(kept) or removed.max() <= kept.min()
    assert sparsity_of(masks) == pytest.approx(len(removed) / WEIGHTS)
    assert sparsity_of({}) == 0


@NO_DEADLINE
@given(st.integers(0, 99), st.floats(0, 0.999))
def test_in_its_own_scope_every_tensor_loses_the_same_share(seed: int, sparsity: float) -> None:
    for name, mask in keep_best(scores(seed), sparsity, "layer").items():
        shape = torch.Size(SHAPES[name])
        assert mask.shape == shape and int((~mask).sum()) == round(sparsity * shape.numel())


@NO_DEADLINE
@given(st.integers(0, 99), st.floats(0, 0.9), st.floats(0, 0.09))
def test_what_went_stays_gone_and_counts(seed: int, first: float, more: float) -> None:
    before = keep_best(scores(seed), first)
    # The best of all scores now are of weights that are gone.
    after = keep_best({name: 9.0 * ~mask for name, mask in before.items()}, first + more, within=before)
    assert all(not (mask & ~before[name]).any() for name, mask in after.items())
    assert sparsity_of(after) == pytest.approx(round((first + more) * WEIGHTS) / WEIGHTS)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_a_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(RecipeError, match=r"sparsity=\S+ is out of range; allowed: 0 up to below 1"):
        keep_best(scores(0), sparsity)


def test_two_of_four_stand_side_by_side() -> None:
    weights = {"map": torch.tensor([[1.0, 4, 3, 2, 9, 0, 8, 7]]), "filter": torch.rand(3, 2, 2, 2)}
    masks = keep_n_of_m(weights, 2, 4)
    assert masks["map"].tolist() == [[False, True, True, False, True, False, True, False]]
    assert (masks["filter"].reshape(-1, 4).sum(dim=1) == 2).all()
    with pytest.raises(RecipeError, match="2:4 does not fit odd: 4 does not divide its 6 inputs"):
        keep_n_of_m({"odd": torch.rand(2, 6)}, 2, 4)
    with pytest.raises(RecipeError, match="4:4 is no pattern"):
        keep_n_of_m(weights, 4, 4)


def test_random_masks_keep_as_many_of_every_tensor_elsewhere() -> None:
    masks = keep_best({name: torch.rand(40, 40) for name in "ab"}, 0.7)
    drawn = random_masks(masks, 1)
    for name, mask in masks.items():
        assert drawn[name].sum() == mask.sum() and not torch.equal(drawn[name], mask)
    assert all(torch.equal(mask, random_masks(masks, 1)[name]) for name, mask in drawn.items())
    assert any(not torch.equal(mask, random_masks(masks, 2)[name]) for name, mask in drawn.items())


def test_nothing_moves_a_removed_weight_while_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    masks = keep_best({name: weight.abs() for name, weight in prunable(model).items()}, 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    before = {name: weight.clone() for name, weight in prunable(model).items()}

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.rand(16, 6)), torch.randint(3, (16,))).backward()
        optimizer.step()

    with held(model, masks):
        for _ in range(5):
            step()
            for name, weight in prunable(model).items():
                assert (weight[~masks[name]] == 0).all()
                assert not torch.equal(weight[masks[name]], before[name][masks[name]])
    step()  # no longer held
    assert all((weight[~masks[name]] != 0).any() for name, weight in prunable(model).items())


@pytest.mark.parametrize("architecture", FAMILIES)
def test_an_encoders_maps_and_pooler_may_go_and_nothing_else(architecture: Architecture) -> None:
    model = classifier(architecture).model
    names = prunable(model)
    covered = {id(weight) for weight in names.values()}
    for layer in layers_of(model):
        for linear in (layer.query, layer.key, layer.value, layer.output, layer.rising, layer.falling):
            assert id(linear.weight) in covered
    assert not any(part in name for name in names for part in ("embeddings.", "LayerNorm", "bias"))
    assert all(weight.ndim == 2 for weight in names.values())
    head = [name for name in names if name.startswith("classifier") or "pooler" in name]
    assert len(head) == 1 or architecture == "distilbert", names  # the pooler, but not the map to the labels


def test_a_decoders_maps_may_go_but_not_its_head() -> None:
    shape = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, tie_word_embeddings=False, **shape))
    names = prunable(model)
    assert len(names) == 2 * 7 and "lm_head.weight" not in names


def test_of_any_network_maps_and_convolutions_may_go() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert list(prunable(model)) == ["0.weight", "3.weight"]
    remove(model, {"3.weight": torch.zeros(2, 4, dtype=torch.bool)})
    assert (model.get_parameter("3.weight") == 0).all() and (model.get_parameter("0.weight") != 0).all()


def test_masks_survive_a_file_of_an_eighth_of_their_size(tmp_path: Path) -> None:
    masks = keep_best(scores(3), 0.4) | {"large": torch.rand(64, 129) > 0.5}
    save_masks(masks, tmp_path / "masks.safetensors")
    found = load_masks(tmp_path / "masks.safetensors")
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], mask) and mask.dtype == torch.bool for name, mask in masks.items())
    assert (tmp_path / "masks.safetensors").stat().st_size < 64 * 129 / 8 + 700

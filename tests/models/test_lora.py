from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketlm.errors import RecipeError
from pocketlm.models.families import pool_of
from pocketlm.models.lora import add_lora, encoder_maps, merge_lora
from tests.tiny_models import ARCHITECTURES, Architecture, classifier, examples_of


def draw(model: torch.nn.Module) -> None:
    """Let every low-rank change be one: B is zero at the start."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adding_changes_nothing_and_merging_keeps_what_was_learned(architecture: Architecture) -> None:
    made = classifier(architecture, layers=2)
    encoded = made.encode(examples_of(made.task, 5).texts)
    before, names = made.logits(encoded), sorted(made.model.state_dict())
    adapted = add_lora(made.model, 3)
    assert (made.logits(encoded) == before).all()
    learned = [name for name, parameter in made.model.named_parameters() if parameter.requires_grad]
    assert any("lora_B" in name for name in learned) and any("classifier" in name for name in learned)
    assert all("lora_" in name or "classifier" in name or "pooler" in name for name in learned)
    pool = pool_of(made.model)
    assert pool is None or pool.weight.requires_grad  # a checkpoint may have come without one
    draw(made.model)
    after = made.logits(encoded)
    assert abs(after - before).max() > 1e-2
    merge_lora(adapted)
    assert sorted(made.model.state_dict()) == names
    assert abs(made.logits(encoded) - after).max() < 1e-5
    assert all(parameter.requires_grad for parameter in made.model.parameters())


def test_every_map_of_the_layers_changes_by_the_rank_and_the_scale_and_nothing_else() -> None:
    made = classifier(layers=1)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    maps = encoder_maps(made.model)
    adapted = add_lora(made.model, 2)
    draw(made.model)
    learned = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    merge_lora(adapted)
    changes = {name: tensor - before[name] for name, tensor in made.model.state_dict().items()}
    assert {name for name, change in changes.items() if change.any()} == {f"{name}.weight" for name in maps}
    ranks = [np.linalg.matrix_rank(changes[f"{name}.weight"].numpy(), tol=1e-4) for name in maps]
    assert ranks == [2] * 6
    for name in maps:
        small, large = (learned[f"{name}.lora_{part}.default.weight"] for part in "AB")
        assert torch.allclose(changes[f"{name}.weight"], 2 * large @ small, atol=1e-5)


def test_a_rank_that_saves_nothing_is_refused() -> None:
    with pytest.raises(
        RecipeError, match="lora_rank=32 is no low rank for a matrix of 32 by 32; allowed: 1 to 31"
    ):
        add_lora(classifier(layers=1).model, 32)

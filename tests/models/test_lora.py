from __future__ import annotations

import pytest
import torch

from pocketlm.errors import RecipeError
from pocketlm.models.families import pool_of
from pocketlm.models.lora import add_lora, encoder_maps, merge_lora
from tests.tiny_models import ARCHITECTURES, Architecture, classifier, examples_of


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adding_changes_nothing_and_merging_keeps_what_was_learned(architecture: Architecture) -> None:
    made = classifier(architecture, layers=2)
    encoded = made.encode(examples_of(made.task, 5).texts)
    before, names = made.logits(encoded), sorted(made.model.state_dict())
    add_lora(made.model, 3)
    assert (made.logits(encoded) == before).all()
    learned = [name for name, parameter in made.model.named_parameters() if parameter.requires_grad]
    assert all(name.endswith((".A", ".B")) or "classifier" in name or "pooler" in name for name in learned)
    pool = pool_of(made.model)
    assert pool is None or pool.weight.requires_grad  # a checkpoint may have come without one
    for module in encoder_maps(made.model):
        torch.nn.init.normal_(module.parametrizations.weight[0].B)
    after = made.logits(encoded)
    assert abs(after - before).max() > 1e-2
    merge_lora(made.model)
    assert sorted(made.model.state_dict()) == names
    assert abs(made.logits(encoded) - after).max() < 1e-5
    assert all(parameter.requires_grad for parameter in made.model.parameters())


def test_the_change_has_the_rank_and_the_scale() -> None:
    made = classifier(layers=1)
    module = encoder_maps(made.model)[0]
    weight = module.weight.detach().clone()
    add_lora(made.model, 2)
    change = module.parametrizations.weight[0]
    torch.nn.init.normal_(change.B)
    difference = module.weight - weight
    assert torch.linalg.matrix_rank(difference, atol=1e-4) == 2
    assert torch.allclose(difference, 2 * change.B @ change.A, atol=1e-5)


def test_a_rank_that_saves_nothing_is_refused() -> None:
    with pytest.raises(
        RecipeError, match="lora_rank=32 is no low rank for a matrix of 32 by 32; allowed: 1 to 31"
    ):
        add_lora(classifier(layers=1).model, 32)

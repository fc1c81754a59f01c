"""Channels of any network: the least important go, and what hangs on them with them."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pocketlm.errors import MissingExtraError, RecipeError
from pocketlm.prune.channels import prune_channels


class Residual(nn.Module):
    """A convolution, a block with a way around it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.outer = nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        states = self.first(images)
        states = states + self.outer(self.norm(self.inner(states)).relu())
        return self.head(states.mean(dim=(2, 3)))


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def test_what_hangs_together_goes_together() -> None:
    torch.manual_seed(0)
    model = Residual().train()
    prune_channels(model, torch.randn(2, 1, 8, 8), 0.5, scope="layer")
    assert model.first.out_channels == model.inner.in_channels == model.outer.out_channels == 8
    assert model.inner.out_channels == model.norm.num_features == model.outer.in_channels == 16
    assert (model.head.in_features, model.head.out_features) == (8, 5)
    assert model.training and model(torch.randn(3, 1, 8, 8)).shape == (3, 5)


@pytest.mark.parametrize("by_loss", [False, True])
def test_the_least_important_neurons_go_and_the_rest_says_the_same(by_loss: bool) -> None:
    model, inputs = perceptron(), torch.randn(64, 12)
    dead = torch.arange(32) % 2 == 0
    with torch.no_grad():
        if by_loss:  # large, and not listened to
            model[0].weight[dead] *= 9
            model[2].weight[:, dead] = 0
        else:  # small, and silent
            model[0].weight[dead], model[0].bias[dead] = 0, 0
            model[2].weight[:, dead] *= 1e-3
        before, kept = model(inputs), model[0].weight[~dead].clone()
    loss = (lambda network: network(inputs).square().sum()) if by_loss else None
    prune_channels(model, inputs[:2], 1 / 3, loss)  # 16 of 48
    assert torch.equal(model[0].weight, kept)
    assert torch.allclose(model(inputs), before, atol=1e-5)
    assert all(weight.grad is None for weight in model.parameters())


def test_layers_keep_round_sizes_and_fit_each_other() -> None:
    model = perceptron()
    prune_channels(model, torch.randn(2, 12), 0.4, round_to=8)
    maps = [module for module in model if isinstance(module, nn.Linear)]
    assert all(before.out_features == after.in_features for before, after in pairwise(maps))
    assert all(module.out_features % 8 == 0 for module in maps[:-1])
    assert sum(module.out_features for module in maps[:-1]) < 48


def test_what_cannot_be_pruned_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"sparsity=1\.0 is out of range"):
        prune_channels(perceptron(), torch.randn(2, 12), 1.0)
    with pytest.raises(RecipeError, match="has 1 linear maps and convolutions"):
        prune_channels(nn.Linear(3, 2), torch.randn(2, 3), 0.5)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pocketlm\[network\]'"):
        prune_channels(perceptron(), torch.randn(2, 12), 0.5)

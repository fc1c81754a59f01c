"""Wanda and SparseGPT on single maps: what they remove, what they mend, and in which order they are good."""

from __future__ import annotations

import pytest
import torch

from pocketlm.errors import RecipeError
from pocketlm.models.curvature import DAMPING
from pocketlm.prune.masks import keep_best
from pocketlm.prune.sparsegpt import sparsegpt
from pocketlm.prune.wanda import wanda, wanda_scores

torch.manual_seed(0)
WEIGHT = torch.randn(24, 40)
# Inputs of very different sizes that depend on each other.
SIZES = torch.logspace(-0.5, 0.5, 40)[torch.randperm(40)]
INPUTS = (torch.randn(500, 12) @ torch.randn(12, 40) + torch.randn(500, 40)) * SIZES
GRAM = INPUTS.T @ INPUTS


def lost(weight: torch.Tensor) -> float:
    return float(((WEIGHT - weight) @ INPUTS.T).square().sum())


def by_magnitude(sparsity: float) -> torch.Tensor:
    return WEIGHT * keep_best({"": WEIGHT.abs()}, sparsity)[""]


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_each_is_better_than_the_simpler_one(sparsity: float) -> None:
    mended, plain = sparsegpt(WEIGHT, GRAM, sparsity, block=20), wanda(WEIGHT, GRAM, sparsity)
    assert lost(mended) < lost(plain) < lost(by_magnitude(sparsity))
    for pruned in (mended, plain):
        assert float((pruned == 0).float().mean()) == pytest.approx(sparsity, abs=0.03)


def test_wanda_compares_within_each_output_and_changes_nothing_else() -> None:
    pruned = wanda(WEIGHT, GRAM, 0.25)
    assert ((pruned == 0).sum(dim=1) == 10).all()
    assert torch.equal(pruned[pruned != 0], WEIGHT[pruned != 0])
    scores = WEIGHT.abs() * INPUTS.norm(dim=0)
    assert torch.allclose(wanda_scores(WEIGHT, GRAM), scores, rtol=1e-4)
    for row in range(len(WEIGHT)):
        assert scores[row][pruned[row] == 0].max() <= scores[row][pruned[row] != 0].min()


@pytest.mark.parametrize("method", [wanda, sparsegpt])
def test_two_of_four_are_kept(method) -> None:
    groups = (method(WEIGHT, GRAM, 0.0, (2, 4)) != 0).reshape(-1, 4).sum(dim=1)
    assert (groups == 2).all()
    with pytest.raises(RecipeError, match="2:3 does not fit the map: 3 does not divide its 40 inputs"):
        method(WEIGHT, GRAM, 0.0, (2, 3))
    with pytest.raises(RecipeError, match=r"sparsity=1\.0 is out of range"):
        method(WEIGHT, GRAM, 1.0)


def test_where_nothing_goes_nothing_changes() -> None:
    assert torch.equal(wanda(WEIGHT, GRAM, 0.0), WEIGHT)
    assert torch.allclose(sparsegpt(WEIGHT, GRAM, 0.0), WEIGHT, atol=1e-6)


def test_independent_inputs_leave_nothing_to_mend() -> None:
    gram = torch.diag(torch.rand(40) + 0.5)
    pruned = sparsegpt(WEIGHT, gram, 0.5, block=40)
    assert torch.allclose(pruned[pruned != 0], WEIGHT[pruned != 0], atol=1e-5)
    damped = gram.diagonal() + DAMPING * gram.diagonal().mean()
    assert torch.equal(pruned != 0, keep_best({"": WEIGHT**2 * damped}, 0.5)[""])


def test_what_one_column_leaves_is_the_least_squares_answer() -> None:
    """With only the first column removed, the others are free to answer the ridge problem exactly."""
    first = WEIGHT.clone().double()
    first[:, 0] = 1e-9  # the smallest by far, so that exactly this column goes
    weight = first.float()
    pruned = sparsegpt(weight, GRAM, 1 / 40, block=40)
    assert (pruned[:, 0] == 0).all() and (pruned[:, 1:] != 0).all()
    weight = WEIGHT.clone()
    weight[:, 0] *= 1e-3 / GRAM.diagonal()[0].sqrt()
    pruned = sparsegpt(weight, GRAM, 1 / 40, block=40)
    hessian = GRAM.double() + DAMPING * GRAM.double().diagonal().mean() * torch.eye(40, dtype=torch.float64)
    inner = hessian[1:, 1:]
    change = torch.linalg.solve(inner, hessian[1:, :1]) @ weight[:, :1].double().T
    assert torch.allclose(pruned[:, 1:].double(), weight[:, 1:].double() + change.T, atol=1e-5)


def test_an_input_that_is_always_zero_needs_no_weight() -> None:
    inputs = INPUTS.clone()
    inputs[:, 3] = 0
    assert (sparsegpt(WEIGHT, inputs.T @ inputs, 0.3)[:, 3] == 0).all()

"""Optimal Brain Damage: its curvature is the second derivative where that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pocketlm.artifact import Artifact
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier
from pocketlm.prune.masks import keep_best, prunable, remove
from pocketlm.prune.obd import (
    OptimalBrainDamage,
    fisher_diagonal,
    gauss_newton_diagonal,
    predicted_increase,
    saliencies,
)
from tests.prune.test_movement import TRAINING, context, taught  # noqa: F401
from tests.tiny_models import MAX_LENGTH, SINGLE, TAGGED


class Diagonal(nn.Module):
    """Outputs that each depend on one weight alone: z_k = a_k w_k, so that the loss's Hessian is diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(1, 6, bias=False)

    def forward(self, scale: torch.Tensor) -> torch.Tensor:
        return scale * self.map.weight[:, 0]


def test_on_a_diagonal_quadratic_the_damage_is_what_was_predicted() -> None:
    torch.manual_seed(0)
    model, scales = Diagonal(), torch.rand(8, 6) + 0.1
    # The minimum: every target is reached.
    targets = (scales * model.map.weight[:, 0]).detach()

    def loss() -> float:
        said = torch.stack([model(scale) for scale in scales])
        return float(((said - targets) ** 2).sum(dim=1).mean().detach())

    curvature = gauss_newton_diagonal(model, lambda net, row: net(scales[row]), range(8), "squares")
    assert torch.allclose(curvature["map.weight"][:, 0], 2 * (scales**2).mean(dim=0), atol=1e-6)
    found = saliencies(model, curvature)
    masks = keep_best(found, 0.5)
    before = loss()
    remove(model, masks)
    assert before == pytest.approx(0, abs=1e-10)
    assert loss() == pytest.approx(predicted_increase(found, masks), rel=1e-5)


def test_for_a_linear_softmax_it_is_the_diagonal_of_the_hessian() -> None:
    """There the Gauss-Newton matrix is the Hessian: the outputs are linear in the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    inputs, labels = torch.rand(5, 4), torch.tensor([0, 1, 2, 1, 0])

    def mean_loss(weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(inputs, weight.reshape(3, 4), model[0].bias), labels)

    weight = model[0].weight.detach().flatten()
    hessian = torch.autograd.functional.hessian(mean_loss, weight)
    found = gauss_newton_diagonal(model, lambda net, row: net(inputs[row]), range(5))
    assert torch.allclose(found["0.weight"].flatten(), hessian.diagonal(), atol=1e-6)


def test_the_fisher_information_is_the_mean_squared_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    inputs, labels = torch.rand(3, 4), torch.tensor([0, 1, 1])

    def loss(net: nn.Module, row: int) -> torch.Tensor:
        return F.cross_entropy(net(inputs[row : row + 1]), labels[row : row + 1])

    found = fisher_diagonal(model, loss, [0, 2])
    for name, weight in prunable(model).items():
        squares = torch.zeros_like(weight)
        for row in (0, 2):
            (gradient,) = torch.autograd.grad(loss(model, row), [weight])
            squares += gradient**2 / 2
        assert torch.allclose(found[name], squares, atol=1e-7)


@pytest.mark.parametrize("curvature", ["gauss-newton", "fisher"])
def test_a_student_is_pruned_in_rounds(taught: Artifact, tmp_path: Path, curvature) -> None:  # noqa: F811
    stage = OptimalBrainDamage(0.5, rounds=2, curvature=curvature, examples=12, training=TRAINING)
    done = stage(taught, context(tmp_path / "stage"))
    assert done.figures["pruned"]["sparsity"] == pytest.approx(0.5, abs=0.005)
    student = Classifier.load(done.parts["student"], SINGLE, MAX_LENGTH)
    zeros = [weight.detach() == 0 for weight in prunable(student.model).values()]
    assert float(torch.cat([gone.flatten() for gone in zeros]).float().mean()) == pytest.approx(
        0.5, abs=0.005
    )


def test_what_cannot_be_is_refused(taught: Artifact, tmp_path: Path) -> None:  # noqa: F811
    for broken in ({"sparsity": 0.0}, {"rounds": 0}, {"examples": 0}):
        with pytest.raises(RecipeError, match="the sparsity must be between 0 and 1"):
            OptimalBrainDamage(**broken)
    tags = taught.with_figures(task=TAGGED.to_dict())
    with pytest.raises(RecipeError, match="the task is of kind tokens; use curvature: fisher"):
        OptimalBrainDamage()(tags, context(tmp_path / "tags"))

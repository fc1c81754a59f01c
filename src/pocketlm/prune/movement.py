"""Movement pruning: a weight stays if training moves it away from zero, however small it is.

Sanh et al. 2020, Movement Pruning (https://arxiv.org/abs/2005.07683): every weight has a score S that is
learned with the straight-through estimator, ∂L/∂S = ∂L/∂W' · W (section 4); the best scores of every matrix
are kept, under the cubic schedule of Zhu and Gupta (section 5). Soft movement keeps the scores above a
threshold instead, and a penalty λ · mean σ(S) says how many that are.

Deviations: masks are made anew some two hundred times in a training, not at every step; a removed weight gets
no gradient of its own, but its score does, so that it may come back until the schedule ends.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pocketlm.artifact import Artifact
from pocketlm.distill.layers import Along, Distill
from pocketlm.errors import RecipeError
from pocketlm.models.load import student_of, with_student
from pocketlm.prune.magnitude import LOGITS, Cubic, zeros_of
from pocketlm.prune.masks import Scope, keep_best, prunable
from pocketlm.stage import Context

UPDATES = 200
"""How often in a training masks are made of scores."""


class Scored(nn.Module):
    """W ⊙ M(S) as a parametrization of W, with the straight-through estimator for S.

    Args:
        weight: W, of any shape.
        start: S before training; high enough that nothing is removed.
    """

    def __init__(self, weight: Tensor, start: float = 0.0) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full_like(weight, start))
        self.kept: Tensor
        self.register_buffer("kept", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """W where it is kept, else 0; the gradient of the scores is that of W' times W everywhere."""
        return weight * self.kept + weight.detach() * (self.scores - self.scores.detach())


@contextmanager
def scored(model: nn.Module, start: float = 0.0) -> Generator[dict[str, Scored]]:
    """Give every weight that may go a score, in place; afterwards removed weights are plain zeros.

    Yields:
        The scores by the weights' names.
    """
    owners = {name: _owner(model, name) for name in prunable(model)}
    found: dict[str, Scored] = {}
    for name, (module, attribute) in owners.items():
        found[name] = Scored(getattr(module, attribute).detach(), start)
        parametrize.register_parametrization(module, attribute, found[name])
    try:
        yield found
    finally:
        for module, attribute in owners.values():
            cast(Any, parametrize).remove_parametrizations(module, attribute, leave_parametrized=True)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


@torch.no_grad()
def keep_highest(found: dict[str, Scored], sparsity: float, scope: Scope = "layer") -> None:
    """Movement: keep the best scores, in place."""
    for name, mask in keep_best({name: each.scores for name, each in found.items()}, sparsity, scope).items():
        found[name].kept.copy_(mask)


@torch.no_grad()
def keep_above(found: dict[str, Scored], threshold: float) -> None:
    """Soft movement: keep every weight with σ(S) above the threshold, in place."""
    for each in found.values():
        each.kept.copy_(each.scores.sigmoid() > threshold)


def mean_gate(found: dict[str, Scored]) -> Tensor:
    """Mean of σ(S) over all weights: what soft movement's penalty holds down (section 4.1)."""
    total = sum((each.scores.sigmoid().sum() for each in found.values()), torch.zeros(()))
    return total / sum(each.scores.numel() for each in found.values())


@dataclass(frozen=True)
class Movement:
    """Prune the student by movement while it learns from its teacher.

    Args:
        sparsity: Fraction to remove of the weights of layers and pooler; of `soft` movement only the penalty
            and the threshold decide.
        scope: Whether each tensor competes for itself, as in the paper, or all together.
        soft: Keep what is above `threshold` instead of a fixed share.
        threshold: Of σ(S), in soft movement.
        penalty: λ of soft movement, on the mean of σ(S).
        score_rate: Learning rate of the scores.
        training: How the student learns.
        seed: Of the batches.
    """

    sparsity: float = 0.85
    scope: Scope = "layer"
    soft: bool = False
    threshold: float = 0.1
    penalty: float = 400.0
    score_rate: float = 1e-2
    training: Distill = LOGITS
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Cubic(self.sparsity, start=0.1)  # out of range is told at once
        if not 0 < self.threshold < 1 or self.penalty < 0 or self.score_rate <= 0:
            raise RecipeError(
                f"threshold={self.threshold}, penalty={self.penalty}, score_rate={self.score_rate}: the "
                "threshold must be between 0 and 1, the penalty 0 or more, the rate above 0"
            )

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the figures `distil` and `pruned` (sparsity, and of what)."""
        student = student_of(artifact)
        training, schedule = replace(self.training, seed=self.seed), Cubic(self.sparsity, start=0.1)
        # σ(2.2) = 0.9: soft movement starts with everything kept, far from a threshold of 0.1.
        with scored(student.model, 2.2 if self.soft else 0.0) as found:

            def each_step(step: int, steps: int) -> None:
                if step % max(1, steps // UPDATES):
                    return
                if self.soft:
                    keep_above(found, self.threshold)
                elif step:
                    keep_highest(found, schedule(step, steps), self.scope)

            def penalty() -> Tensor:
                return self.penalty * mean_gate(found)

            rate = self.score_rate / training.learning_rate
            along = Along(
                each_step,
                schedule.end,
                {each.scores: rate for each in found.values()},
                penalty if self.soft else None,
            )
            curves = training.fit(student, artifact, context, "prune the student", along)
        return with_student(artifact, student, context, distil=curves, pruned=zeros_of(student.model))

"""Magnitude pruning: the smallest weights of any network go, at once or little by little while it trains.

Han et al. 2015 (https://arxiv.org/abs/1506.02626), section 3: remove what is small, train what is left. Zhu
and Gupta 2017 (https://arxiv.org/abs/1710.01878), section 3, eq. 1: raise the sparsity in small steps, fast
at first and slowly at the end.

Deviations: by default all tensors compete for what is kept (`global`), where Zhu and Gupta give each the same
sparsity (`layer`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from pocketlm.artifact import Artifact
from pocketlm.distill.layers import Along, Distill
from pocketlm.errors import RecipeError
from pocketlm.models.load import student_of, with_student
from pocketlm.prune.masks import (
    Masks,
    Scope,
    held,
    keep_best,
    keep_n_of_m,
    nonzero,
    prunable,
    remove,
    sparsity_of,
)
from pocketlm.stage import Context

REMOVALS = 50
"""Steps in which the sparsity rises."""
LOGITS = Distill(hidden=0.0)
EachStep = Callable[[int, int], None]
"""What `pocketlm.train.train` calls with the steps done and the steps in all."""


def magnitudes(model: nn.Module) -> dict[str, Tensor]:
    """|w| of every weight that may go, by name."""
    return {name: weight.detach().abs() for name, weight in prunable(model).items()}


def magnitude_masks(
    model: nn.Module, sparsity: float, scope: Scope = "global", pattern: str | None = None
) -> Masks:
    """Masks that keep a network's largest weights.

    Args:
        model: Any network.
        sparsity: Fraction to remove, see `pocketlm.prune.masks.keep_best`.
        scope: Whether all tensors compete, or each for itself.
        pattern: `N:M` keeps the N largest of every M side by side instead.

    Raises:
        RecipeError: the sparsity or the pattern is none.
    """
    if pattern is None:
        return keep_best(magnitudes(model), sparsity, scope)
    return keep_n_of_m(magnitudes(model), *parsed_pattern(pattern))


def parsed_pattern(pattern: str) -> tuple[int, int]:
    """The numbers of `2:4`.

    Raises:
        RecipeError: it is not of that form.
    """
    n, colon, m = pattern.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal()):
        raise RecipeError(f"pattern={pattern!r} is not of the form 2:4, two kept of every four")
    return int(n), int(m)


@dataclass(frozen=True)
class Cubic:
    """The sparsity during a training: s(t) = s_f + (s_i - s_f) (1 - t)³ between two shares of its steps.

    Args:
        final: s_f.
        start: Share of the steps before which nothing is removed.
        end: Share of the steps from which s_f is kept.
        initial: s_i.
    """

    final: float
    start: float = 0.0
    end: float = 0.7
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1 or not 0 <= self.start < self.end <= 1:
            raise RecipeError(
                f"initial={self.initial}, final={self.final}, start={self.start}, end={self.end} is no "
                "schedule; allowed: 0 <= initial <= final < 1 and 0 <= start < end <= 1"
            )

    def __call__(self, step: int, steps: int) -> float:
        """Sparsity after `step` of `steps` steps."""
        if step < self.start * steps:
            return 0.0
        passed = min(1.0, (step - self.start * steps) / ((self.end - self.start) * steps))
        return self.final + (self.initial - self.final) * (1 - passed) ** 3


@contextmanager
def pruned_gradually(model: nn.Module, schedule: Cubic, scope: Scope = "global") -> Generator[EachStep]:
    """Remove a network's smallest weights while it is trained, in some fifty steps; what went stays zero.

    What is removed follows from the weights alone, so a training that goes on from a checkpoint goes on here.

    Args:
        model: Any network.
        schedule: Sparsity by step.
        scope: Whether all tensors compete, or each for itself.

    Yields:
        What to call at the start and after every step, see `pocketlm.train.train`.
    """
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    begun = False

    def each_step(step: int, steps: int) -> None:
        nonlocal begun
        due = step % max(1, steps // REMOVALS) == 0
        if due or not begun:
            remove(model, masks)
            kept = nonzero(model)
            if due:
                kept = keep_best(magnitudes(model), schedule(step, steps), scope, kept)
            for name, mask in kept.items():
                masks[name].copy_(mask)
        begun = True
        remove(model, masks)  # Adam's moments would go on moving what has just been removed

    with held(model, masks):
        yield each_step


@dataclass(frozen=True)
class Magnitude:
    """Prune the student by magnitude while it learns from its teacher.

    Args:
        sparsity: Fraction to remove of the weights of layers and pooler.
        gradual: Raise the sparsity little by little, over the first 70 % of the steps; else all at once,
            before the first.
        scope: Whether all tensors compete, or each for itself.
        pattern: `N:M` keeps the N largest of every M weights side by side, at once; `sparsity` says nothing.
        training: How it learns.
        seed: Of the batches.
    """

    sparsity: float = 0.8
    gradual: bool = True
    scope: Scope = "global"
    pattern: str | None = None
    training: Distill = LOGITS
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Cubic(self.sparsity)  # out of range is told at once
        if self.pattern is not None:
            parsed_pattern(self.pattern)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the figures `distil` and `pruned` (sparsity, and of what).

        Raises:
            RecipeError: the pattern does not fit a map.
        """
        student = student_of(artifact)
        training = replace(self.training, seed=self.seed)
        schedule = Cubic(self.sparsity)
        if self.gradual and self.pattern is None:
            with pruned_gradually(student.model, schedule, self.scope) as each_step:
                along = Along(each_step, schedule.end)
                curves = training.fit(student, artifact, context, "prune the student", along)
        else:
            with held(student.model, magnitude_masks(student.model, self.sparsity, self.scope, self.pattern)):
                curves = training.fit(student, artifact, context, "train what is left")
        return with_student(artifact, student, context, distil=curves, pruned=zeros_of(student.model))


def zeros_of(model: nn.Module) -> dict[str, object]:
    """What a sparse network's figures say: how many weights are zero, and of which."""
    return {"sparsity": sparsity_of(nonzero(model)), "sparsity_of": "layers and pooler, embeddings out"}

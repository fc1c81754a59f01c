"""Optimal Brain Damage: what goes is what the loss would hardly miss, by its second derivative.

LeCun, Denker and Solla 1989, Optimal Brain Damage (Advances in Neural Information Processing Systems 2, pages
598 to 605): at a minimum of the loss the first derivative is gone, and with the off-diagonal terms left out,
removing weight w_k raises it by s_k = h_kk w_k² / 2, the saliency (their eq. 3 to 5). Weights of low saliency
go, the rest is trained on, and again.

Deviations: their recursion approximates h_kk by leaving out off-diagonal terms and second derivatives of the
activations layer by layer. Here h_kk is the exact diagonal of the Gauss-Newton matrix Jᵀ H J, H being the
loss's second derivative by the outputs, from one backward pass for every example and output; or the
empirical Fisher information, from one backward pass for every example, which takes any loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.data.sample import spread
from pocketlm.distill.layers import Distill
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier, student_of, with_student
from pocketlm.prune.magnitude import LOGITS, zeros_of
from pocketlm.prune.masks import Masks, Scope, held, keep_best, prunable
from pocketlm.stage import Context
from pocketlm.supervised import label_loss, targets_of

Outputs = Callable[[nn.Module, int], Tensor]
"""What a network says of one example, [outputs]."""
ExampleLoss = Callable[[nn.Module, int], Tensor]
"""The loss of one example, one number."""
Curvature = Literal["gauss-newton", "fisher"]
LossKind = Literal["cross-entropy", "squares"]


def gauss_newton_diagonal(
    model: nn.Module, outputs: Outputs, examples: Sequence[int], kind: LossKind = "cross-entropy"
) -> dict[str, Tensor]:
    """The diagonal of Jᵀ H J of the mean loss, exactly, for every weight that may go.

    With cross-entropy H = diag(p) - p pᵀ = Σ_c p_c (e_c - p)(e_c - p)ᵀ, so that h_kk is the mean over
    examples of Σ_c p_c (∂(e_c - p)ᵀz / ∂w_k)²; with squared errors Σ (z - y)², H = 2 I.

    Args:
        model: In evaluation mode.
        outputs: Its logits, or its numbers, for one example.
        examples: Which ones.
        kind: The loss.

    Returns:
        h_kk by the weights' names, each of the weight's shape.
    """
    weights = prunable(model)
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for example in examples:
        said = outputs(model, example)
        share = F.softmax(said.detach(), dim=0)
        for place in range(len(said)):
            if kind == "squares":
                direction, weight = said[place], 2.0
            else:
                direction, weight = said[place] - (share * said).sum(), float(share[place])
            _add_squares(sums, weights, direction, weight, keep=place + 1 < len(said))
    return {name: total / len(examples) for name, total in sums.items()}


def fisher_diagonal(model: nn.Module, loss: ExampleLoss, examples: Sequence[int]) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: mean of (∂loss / ∂w_k)² over examples.

    Args:
        model: In evaluation mode.
        loss: Of one example.
        examples: Which ones.

    Returns:
        By the weights' names, each of the weight's shape.
    """
    weights = prunable(model)
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for example in examples:
        _add_squares(sums, weights, loss(model, example), 1.0, keep=False)
    return {name: total / len(examples) for name, total in sums.items()}


def _add_squares(
    sums: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter], value: Tensor, share: float, keep: bool
) -> None:
    gradients = torch.autograd.grad(value, [*weights.values()], retain_graph=keep, materialize_grads=True)
    for total, gradient in zip(sums.values(), gradients, strict=True):
        total.addcmul_(gradient, gradient, value=share)


def saliencies(model: nn.Module, curvature: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """s_k = h_kk w_k² / 2 by the weights' names."""
    return {name: curvature[name] * weight.detach() ** 2 / 2 for name, weight in prunable(model).items()}


def predicted_increase(saliency: Mapping[str, Tensor], masks: Masks) -> float:
    """What removing rises the loss by, were all removed weights independent: Σ s_k."""
    return sum(float(score[~masks[name]].sum()) for name, score in saliency.items())


@dataclass(frozen=True)
class OptimalBrainDamage:
    """Prune the student by saliency, and train what is left; in several rounds, the curvature made anew.

    Args:
        sparsity: Fraction to remove of the weights of layers and pooler, in the end.
        rounds: In each, an equal share of all weights goes.
        curvature: `gauss-newton` for one label or number a text; `fisher` for any task.
        examples: Of train, evenly spread, of which the curvature is the mean.
        scope: Whether all tensors compete, or each for itself.
        training: How what is left learns, in every round.
        seed: Of the batches.
    """

    sparsity: float = 0.6
    rounds: int = 1
    curvature: Curvature = "gauss-newton"
    examples: int = 256
    scope: Scope = "global"
    training: Distill = LOGITS
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1 or self.rounds < 1 or self.examples < 1:
            raise RecipeError(
                f"sparsity={self.sparsity}, rounds={self.rounds}, examples={self.examples}: the sparsity "
                "must be between 0 and 1, the others 1 or more"
            )

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the figures `distil` and `pruned` (sparsity, and of what).

        Raises:
            RecipeError: Gauss-Newton is asked for on a task that it is not written for.
        """
        task = artifact.task
        if self.curvature == "gauss-newton" and task.kind not in ("classification", "regression"):
            raise RecipeError(
                "curvature=gauss-newton is for one label or number a text, and the task is of kind "
                f"{task.kind}; use curvature: fisher"
            )
        student = student_of(artifact)
        training, masks = replace(self.training, seed=self.seed), Masks()
        curves: dict[str, object] = {}
        for number in range(1, self.rounds + 1):
            found = saliencies(student.model, self.curvature_of(student, artifact))
            masks = keep_best(found, self.sparsity * number / self.rounds, self.scope, masks or None)
            own = replace(context, checkpoints=context.checkpoints / f"round-{number}")
            with held(student.model, masks):
                curves = training.fit(student, artifact, own, f"round {number} of {self.rounds}")
        return with_student(artifact, student, context, distil=curves, pruned=zeros_of(student.model))

    def curvature_of(self, student: Classifier, artifact: Artifact) -> dict[str, Tensor]:
        """h_kk of a student on some of the training texts."""
        train = load_split(artifact.parts["data"], "train")
        encoded, chosen = student.encode(train.texts), spread(len(train), self.examples)
        student.model.eval()
        if self.curvature == "fisher":
            loss = label_loss(student, encoded, targets_of(train, student.task))
            return fisher_diagonal(student.model, lambda model, row: loss(model, [row]).sum(), chosen)

        def outputs(model: nn.Module, row: int) -> Tensor:
            return model(**student.inputs(encoded, [row])).logits[0]

        kind: LossKind = "squares" if student.task.kind == "regression" else "cross-entropy"
        return gauss_newton_diagonal(student.model, outputs, chosen, kind)

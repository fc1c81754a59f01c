"""Quantization-aware training: the student learns on the grid on which its weights will be stored.

Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), section 3: weights are quantized on the way forward, and
gradients pass as if they were not (the straight-through estimator). Zhang et al. 2020, TernaryBERT
(https://arxiv.org/abs/2009.12812), section 3: weights of three values, by the rule of Li et al. 2016
(https://arxiv.org/abs/1605.04711), learned by distillation.

Deviations: every row has a scale of its own, in maps as in embeddings (TernaryBERT: one a map); scales are
not learned but follow from the weights, at the clipping that is best for normally distributed ones;
activations are not simulated, since they keep 8 bits.
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
from pocketlm.distill.layers import Distill
from pocketlm.errors import RecipeError
from pocketlm.models.load import student_of, with_student
from pocketlm.stage import Context

TERNARY = 2
"""Bits of a weight of three values."""
BITS = range(TERNARY, 9)
CLIPS = {3: 1.9524, 4: 2.4793, 5: 2.9103, 6: 3.2560}
"""Largest value of a grid with 2^bits - 1 points that has the least squared error for weights of N(0, 1)."""
SMALLEST = 1024
"""Tensors of fewer weights are left in float32."""
LOGITS = Distill(hidden=0.0, epochs=2, learning_rate=1e-4)


def highest(bits: int) -> int:
    """The grid is -highest … highest: 1 of three values, 7 of four bits, 127 of eight."""
    return 2 ** (bits - 1) - 1


def scales(weight: Tensor, bits: int) -> Tensor:
    """Distance of two points of the grid, for every row.

    Args:
        weight: [rows, width].
        bits: 2, of three values, to 8.

    Returns:
        [rows, 1], above 0. At least one weight of every row reaches the end of the grid.
    """
    size = weight.abs()
    largest = size.amax(dim=1, keepdim=True)
    if bits == TERNARY:  # Li et al., eq. 6: the mean of those beyond 0.7 of the mean
        beyond = _beyond(weight)
        found = (size * beyond).sum(dim=1, keepdim=True) / beyond.sum(dim=1, keepdim=True).clamp_min(1)
    elif bits in CLIPS:
        spread = weight.square().mean(dim=1, keepdim=True).sqrt()
        found = torch.minimum(CLIPS[bits] * spread, largest) / highest(bits)
    else:
        found = largest / highest(bits)
    return torch.where(largest > 0, found, torch.ones_like(found))


def on_grid(weight: Tensor, bits: int) -> Tensor:
    """The nearest points of the grid: w ≈ scale · q.

    Args:
        weight: [rows, width].
        bits: See `scales`.

    Returns:
        Of the same shape; 0 stays 0.
    """
    scale = scales(weight, bits)
    if bits == TERNARY:  # the threshold is 0.7 of the mean, not half of the scale
        return weight.sign() * _beyond(weight) * scale
    return (weight / scale).round_().clamp_(-highest(bits), highest(bits)).mul_(scale)


def _beyond(weight: Tensor) -> Tensor:
    """True where a weight of three values is not 0 (Li et al., eq. 6), bool of the weight's shape."""
    size = weight.abs()
    return size > 0.7 * size.mean(dim=1, keepdim=True)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int) -> Tensor:
        del ctx
        return on_grid(weight, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        del ctx
        return gradients[0], None


class OnGrid(nn.Module):
    """A weight on its grid, as a parametrization of it; what is zero stays so.

    Args:
        weight: [rows, width].
        bits: See `scales`.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.kept: Tensor
        self.register_buffer("kept", weight != 0)

    def forward(self, weight: Tensor) -> Tensor:
        """[rows, width], with the gradient of the weight itself."""
        return cast(Tensor, _StraightThrough.apply(weight * self.kept, self.bits))


def check_bits(weight_bits: int, embedding_bits: int) -> None:
    """Of a stage's fields.

    Raises:
        RecipeError: one of them is not in `BITS`.
    """
    if weight_bits not in BITS or embedding_bits not in BITS:
        raise RecipeError(
            f"weight_bits={weight_bits}, embedding_bits={embedding_bits}: allowed are "
            f"{BITS.start} (three values) to {BITS.stop - 1}"
        )


def large_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Embedding]:
    """An encoder's maps and embedding tables of `SMALLEST` weights or more, by name; not the head's."""
    return {
        name: module
        for name, module in cast(Any, model).base_model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.numel() >= SMALLEST
    }


@contextmanager
def quantized(model: nn.Module, weight_bits: int, embedding_bits: int) -> Generator[None]:
    """Keep an encoder's maps and embeddings on their grids while it is trained, in place; not the head.

    Args:
        model: Afterwards its weights are points of the grids.
        weight_bits: Of the linear maps, 2 to 8.
        embedding_bits: Of the embedding tables.
    """
    owners = list(large_layers(model).values())
    for module in owners:
        bits = embedding_bits if isinstance(module, nn.Embedding) else weight_bits
        grid = OnGrid(module.weight.detach(), bits)
        parametrize.register_parametrization(module, "weight", grid)
    try:
        yield
    finally:
        for module in owners:
            cast(Any, parametrize).remove_parametrizations(module, "weight", leave_parametrized=True)


@dataclass(frozen=True)
class QuantizationAware:
    """Train the student on the grid of few bits while it learns from its teacher.

    It may stand behind `distill`, or in its place. The graph computes in 8 bits or in float32 all the same;
    few bits make `model.pocket` small (see `pack`).

    Args:
        weight_bits: Of the linear maps: 2 (three values) to 8.
        embedding_bits: Of the embedding tables.
        training: How the student learns.
        seed: Of the batches.
    """

    weight_bits: int = 4
    embedding_bits: int = 4
    training: Distill = LOGITS
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bits(self.weight_bits, self.embedding_bits)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the figures `distil` and `grid` (bits)."""
        student = student_of(artifact)
        training = replace(self.training, seed=self.seed)
        with quantized(student.model, self.weight_bits, self.embedding_bits):
            curves = training.fit(student, artifact, context, "train on the grid")
        return with_student(
            artifact,
            student,
            context,
            distil=curves,
            grid={"weight_bits": self.weight_bits, "embedding_bits": self.embedding_bits},
        )

"""GPTQ: round weights column by column, and let the columns still to come make up for it.

Frantar et al. 2023, GPTQ (https://arxiv.org/abs/2210.17323), section 3 and algorithm 1: rounding the
weight of column m by e moves the columns to its right by -e / [H⁻¹]_mm · [H⁻¹]_m, with H = X Xᵀ + λ I of
calibration texts.

Deviations: one scale a row by default, at the clipping of `pocketlm.quantize.aware`, and no zero point; maps
are rounded one after the other, each with what the rounded ones before it make; columns are not put into
another order; an encoder's embedding rows are rounded to the nearest point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.data.sample import few
from pocketlm.errors import RecipeError
from pocketlm.models.curvature import inverse_factor
from pocketlm.models.load import Classifier, student_of, with_student
from pocketlm.models.saliency import visit
from pocketlm.quantize.aware import check_bits, highest, large_layers, on_grid, scales
from pocketlm.stage import Context
from pocketlm.tokenization.encode import Encoded


@torch.no_grad()
def gptq(weight: Tensor, gram: Tensor, bits: int, group: int | None = None) -> Tensor:
    """The weights on their grid, so that little of W X is lost.

    Args:
        weight: W, [outputs, inputs].
        gram: X Xᵀ over calibration inputs, [inputs, inputs].
        bits: 2, of three values, to 8.
        group: Columns that share a scale in a row; None is all.

    Returns:
        [outputs, inputs].
    """
    left, columns = weight.detach().double().clone(), weight.shape[1]
    factor = inverse_factor(gram)
    scale = scales(left, bits)
    for place in range(columns):
        if group and place % group == 0:
            scale = scales(left[:, place : place + group], bits)
        column = left[:, place : place + 1]
        rounded = (column / scale).round().clamp(-highest(bits), highest(bits)) * scale
        error = (column - rounded) / factor[place, place]
        left[:, place + 1 :] -= error @ factor[place : place + 1, place + 1 :]
        left[:, place : place + 1] = rounded
    return left.to(weight.dtype)


@dataclass(frozen=True)
class Gptq:
    """Round the student's weights to few bits without training, by what its maps read on texts of train.

    As after `qat`, the graph computes in 8 bits or in float32; few bits make `model.pocket` small.

    Args:
        weight_bits: Of the linear maps: 2 (three values) to 8.
        embedding_bits: Of the embedding tables.
        texts: Of train that are read.
    """

    weight_bits: int = 4
    embedding_bits: int = 8
    texts: int = 256

    def __post_init__(self) -> None:
        check_bits(self.weight_bits, self.embedding_bits)
        if self.texts < 1:
            raise RecipeError(f"texts={self.texts} is out of range; allowed: 1 or more")

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the figure `grid` (bits)."""
        student = student_of(artifact)
        encoded = student.encode(few(load_split(artifact.parts["data"], "train").texts, self.texts))
        layers = large_layers(student.model).values()
        with context.progress.task("round the weights", len(layers)) as advance:
            for module in sorted(layers, key=lambda module: isinstance(module, nn.Linear)):  # tables first
                with torch.no_grad():
                    if isinstance(module, nn.Linear):
                        rounded = gptq(module.weight, gram_of(student, encoded, module), self.weight_bits)
                    else:
                        rounded = on_grid(module.weight, self.embedding_bits)
                    module.weight.copy_(rounded)
                advance(1)
        return with_student(
            artifact,
            student,
            context,
            grid={"weight_bits": self.weight_bits, "embedding_bits": self.embedding_bits},
        )


def gram_of(classifier: Classifier, encoded: Encoded, linear: nn.Linear) -> Tensor:
    """X Xᵀ of what a map reads, padding left out, [inputs, inputs]."""
    gram = torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64)

    def see(_: int, read: Tensor) -> None:
        gram.add_((read.T @ read).double())

    visit(classifier, encoded, [(linear, "in")], see)
    return gram

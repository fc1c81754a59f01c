"""SparseGPT: remove weights column by column, and let the columns still to come make up for it.

Frantar and Alistarh 2023, SparseGPT (https://arxiv.org/abs/2301.00774), section 3 and algorithm 1: with
H = X Xᵀ + λ I, removing w_m from a row raises the squared error of its output by w_m² / [H⁻¹]_mm, and the
best change of the weights to the right of m is -w_m / [H⁻¹]_mm · [H⁻¹]_m (Optimal Brain Surgeon). One
Cholesky factor of H⁻¹ gives what all columns need, because every row removes from left to right.

Deviations: inputs that are always zero get zero weights, as in the published code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pocketlm.errors import RecipeError
from pocketlm.models.curvature import inverse_factor
from pocketlm.prune.masks import keep_best, keep_n_of_m


@torch.no_grad()
def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    sparsity: float,
    pattern: tuple[int, int] | None = None,
    block: int = 128,
) -> Tensor:
    """The weights with some removed and the others changed, so that little of W X is lost.

    Args:
        weight: W, [outputs, inputs].
        gram: X Xᵀ over calibration inputs, [inputs, inputs].
        sparsity: Fraction to remove of every block of columns.
        pattern: Keep N of every M side by side of every row instead.
        block: Columns whose masks are chosen together; with a pattern, M columns are.

    Returns:
        [outputs, inputs].

    Raises:
        RecipeError: the sparsity or the pattern is none.
    """
    if not 0 <= sparsity < 1:
        raise RecipeError(f"sparsity={sparsity} is out of range; allowed: 0 up to below 1")
    left, columns = weight.detach().double().clone(), weight.shape[1]
    factor = inverse_factor(gram)
    left[:, gram.diagonal() == 0] = 0.0
    width = block if pattern is None else pattern[1]
    if pattern is not None and columns % width:
        keep_n_of_m({"the map": weight}, *pattern)  # says what is wrong
    for start in range(0, columns, width):
        end = min(start + width, columns)
        here = factor[start:end, start:end]
        scores = left[:, start:end] ** 2 / here.diagonal() ** 2
        if pattern is None:
            mask = keep_best({"": scores}, sparsity)[""]
        else:
            mask = keep_n_of_m({"": scores}, *pattern)[""]
        errors = torch.zeros(len(left), end - start, dtype=left.dtype)
        for place in range(end - start):
            column = left[:, start + place]
            errors[:, place] = torch.where(mask[:, place], 0.0, column / here[place, place])
            # [H⁻¹]_m of the columns to the right, divided by the same root that the error is.
            left[:, start + place : end] -= torch.outer(errors[:, place], here[place, place:])
            left[:, start + place].masked_fill_(~mask[:, place], 0.0)
        left[:, end:] -= errors @ factor[start:end, end:]
    return left.to(weight.dtype)

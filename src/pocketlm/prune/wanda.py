"""Wanda: a weight matters as much as what it multiplies.

Sun et al. 2024, A Simple and Effective Pruning Approach for Large Language Models
(https://arxiv.org/abs/2306.11695), section 3: S_ij = |W_ij| · ‖X_j‖₂, compared within each output; nothing is
trained and no weight that stays is changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pocketlm.errors import RecipeError
from pocketlm.prune.masks import keep_n_of_m


def wanda_scores(weight: Tensor, gram: Tensor) -> Tensor:
    """S = |W| · ‖X_j‖₂ (eq. 1).

    Args:
        weight: W, [outputs, inputs].
        gram: X Xᵀ over calibration inputs, [inputs, inputs]; its diagonal is what counts.

    Returns:
        [outputs, inputs].
    """
    return weight.abs() * gram.diagonal().clamp_min(0).sqrt()


def wanda(weight: Tensor, gram: Tensor, sparsity: float, pattern: tuple[int, int] | None = None) -> Tensor:
    """The weights with the lowest scores of each output removed.

    Args:
        weight: W, [outputs, inputs].
        gram: X Xᵀ, [inputs, inputs].
        sparsity: Fraction to remove of each row.
        pattern: Keep N of every M side by side instead.

    Returns:
        [outputs, inputs].

    Raises:
        RecipeError: the sparsity or the pattern is none.
    """
    return weight * kept(wanda_scores(weight, gram), sparsity, pattern)


def kept(scores: Tensor, sparsity: float, pattern: tuple[int, int] | None) -> Tensor:
    """True for the best of each row, or N of every M of it, bool [outputs, inputs]."""
    if pattern is not None:
        return keep_n_of_m({"the map": scores}, *pattern)["the map"]
    if not 0 <= sparsity < 1:
        raise RecipeError(f"sparsity={sparsity} is out of range; allowed: 0 up to below 1")
    lowest = scores.argsort(dim=1, stable=True)[:, : round(sparsity * scores.shape[1])]
    return torch.ones_like(scores, dtype=torch.bool).scatter(1, lowest, False)

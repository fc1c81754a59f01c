"""The curvature of a linear map's squared error: what rounding or removing one weight costs, and who pays.

With H = X Xᵀ + λ I, the second derivative of |W X - Ŵ X|² by a row of Ŵ, changing the weight of column m by d
is best met by changing the columns still free by d / [H⁻¹]_mm · [H⁻¹]_m (Hassibi and Stork 1992, Optimal
Brain Surgeon). SparseGPT and GPTQ go from left to right in all rows alike, so one factor serves all.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

DAMPING = 0.01
"""λ over the mean of H's diagonal."""


def inverse_factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor U of H⁻¹ = Uᵀ U, whose row m is what column m needs, [inputs, inputs]."""
    damped = gram.detach().double().clone()
    dead = damped.diagonal() == 0
    damped.diagonal()[dead] = 1.0
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(cast(Tensor, torch.linalg.cholesky(damped)))
    return cast(Tensor, torch.linalg.cholesky(inverse, upper=True))

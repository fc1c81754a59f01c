"""Low-rank adaptation: train a small change of each matrix in place of the matrix.

Hu et al. 2021, LoRA (https://arxiv.org/abs/2106.09685), section 4.1, eq. 3: h = W x + (α / r) B A x, with W
fixed, A random and B zero at the start, so that training starts from the pre-trained model.

Deviations: every linear map of the encoder layers is adapted, not the query and value maps alone (the
authors' later advice, and what little data needs here); α = 2 r.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pocketlm.errors import RecipeError
from pocketlm.models.families import pool_of

ALPHA_BY_RANK = 2.0


class LowRank(nn.Module):
    """W + (α / r) B A as a parametrization of W.

    Args:
        weight: W, [out, in].
        rank: r, columns of B and rows of A.

    Raises:
        RecipeError: the rank is not below both sides of W.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        if rank >= min(rows, columns):
            raise RecipeError(
                f"lora_rank={rank} is no low rank for a matrix of {rows} by {columns}; "
                f"allowed: 1 to {min(rows, columns) - 1}"
            )
        self.A = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.B = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted matrix, [out, in]."""
        return weight + ALPHA_BY_RANK * (self.B @ self.A)


def encoder_maps(model: nn.Module) -> list[nn.Linear]:
    """The linear maps of the encoder's layers; the heads, pooler and embeddings are not among them."""
    base = cast(nn.Module, getattr(model, "base_model", model))
    found = cast(Any, base).named_modules()
    return [
        module
        for name, module in found
        if isinstance(module, nn.Linear) and name.startswith(("encoder.", "transformer."))
    ]


def add_lora(model: nn.Module, rank: int) -> None:
    """Fix the encoder's weights and give every linear map of its layers a low-rank change, in place.

    A pooler is learned whole, as the rest of the head is: many checkpoints come without one.

    Raises:
        RecipeError: the rank is too large.
    """
    cast(nn.Module, getattr(model, "base_model", model)).requires_grad_(False)
    pool = pool_of(model)
    if pool is not None:
        pool.requires_grad_(True)
    for module in encoder_maps(model):
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


def merge_lora(model: nn.Module) -> None:
    """Add every low-rank change to its matrix, in place; all weights are ordinary ones again."""
    for module in encoder_maps(model):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    model.requires_grad_(True)

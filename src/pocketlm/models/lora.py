"""Low-rank adaptation, of the `peft` library: train a small change of each matrix in place of the matrix.

Hu et al. 2021, LoRA (https://arxiv.org/abs/2106.09685), section 4.1, eq. 3: h = W x + (α / r) B A x, with W
fixed, A random and B zero at the start, so that training starts from the pre-trained model.

Deviations: every linear map of the encoder layers is adapted, not the query and value maps alone (the
authors' later advice, and what little data needs here); α = 2 r.
"""

from __future__ import annotations

from typing import Any, cast

from peft import LoraConfig, LoraModel
from torch import nn

from pocketlm.errors import RecipeError
from pocketlm.models.families import pool_of

ALPHA_BY_RANK = 2


def encoder_maps(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps of the encoder's layers, by name; heads, pooler and embeddings are not among them."""
    found = cast(Any, getattr(model, "base_model", model)).named_modules()
    inside = {
        module
        for name, module in found
        if isinstance(module, nn.Linear) and name.startswith(("encoder.", "transformer."))
    }
    return {name: module for name, module in cast(Any, model).named_modules() if module in inside}


def add_lora(model: nn.Module, rank: int) -> LoraModel:
    """Fix the encoder's weights and give every linear map of its layers a low-rank change, in place.

    A pooler is learned whole, as the rest of the head is: many checkpoints come without one.

    Args:
        model: With a head.
        rank: r, columns of B and rows of A.

    Returns:
        What `merge_lora` takes.

    Raises:
        RecipeError: the rank is not below both sides of every matrix.
    """
    maps = encoder_maps(model)
    rows, columns = min((module.weight.shape for module in maps.values()), key=min)
    if rank >= min(rows, columns):
        raise RecipeError(
            f"lora_rank={rank} is no low rank for a matrix of {rows} by {columns}; "
            f"allowed: 1 to {min(rows, columns) - 1}"
        )
    encoder = {*cast(nn.Module, getattr(model, "base_model", model)).parameters()}
    learned = [parameter for parameter in model.parameters() if parameter not in encoder]
    pool = pool_of(model)
    learned += [] if pool is None else pool.parameters()
    config = LoraConfig(r=rank, lora_alpha=ALPHA_BY_RANK * rank, target_modules=[*maps])
    adapted = LoraModel(model, config, "default")
    for parameter in learned:
        parameter.requires_grad_(True)
    return adapted


def merge_lora(adapted: LoraModel) -> None:
    """Add every low-rank change to its matrix, in place; all weights are ordinary ones again."""
    model = cast(Any, adapted.merge_and_unload())
    model.requires_grad_(True)

"""Masks over the weights of any network: True keeps, everywhere.

A mask belongs to a weight by its name in `named_parameters`. Which weights may go is `prunable`'s to say, a
score for each of them is a method's (magnitude, movement, saliency), and `keep_best` makes masks of scores.
Sparsity is the fraction removed of the weights that masks cover: in an encoder its layers and its pooler,
embeddings out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from transformers import PreTrainedModel

from pocketlm.errors import RecipeError, storage_errors
from pocketlm.models.families import FAMILIES, encoder_layers, layers_of, pool_of

Masks = dict[str, Tensor]
"""bool, of the shape of the weight of that name."""
Scope = Literal["global", "layer"]

MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that masks may cover, by name.

    Of an encoder of the BERT family, the maps of its layers and its pooler (Chen et al. 2020, section 2); of
    another model of transformers, the linear maps below its head; of any other network, all of its linear
    maps and convolutions. Never biases, norms or embeddings.
    """
    if isinstance(model, PreTrainedModel) and model.config.model_type in FAMILIES:
        pool = pool_of(model)
        inside = [module for layer in encoder_layers(model) for module in layer.modules()]
        maps = [module for module in (*inside, pool) if isinstance(module, nn.Linear)]
        chosen = {id(linear.weight) for linear in maps}
    else:
        body = cast(nn.Module, getattr(model, "base_model", model))
        chosen = {id(module.weight) for module in body.modules() if isinstance(module, MAPS)}
    return {name: weight for name, weight in model.named_parameters() if id(weight) in chosen}


def keep_best(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: Scope = "global",
    within: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Masks that remove the lowest scores; of equal ones, those that come first.

    Args:
        scores: Of every weight, by name.
        sparsity: Fraction to remove, of all weights or, in scope `layer`, of each tensor: 0 up to below 1.
        scope: Whether all tensors compete, or each for itself.
        within: What these masks have removed stays removed, and counts.

    Raises:
        RecipeError: the sparsity is out of range.
    """
    if not 0 <= sparsity < 1:
        raise RecipeError(f"sparsity={sparsity} is out of range; allowed: 0 up to below 1")
    flat = {name: score.detach().float().flatten() for name, score in scores.items()}
    if within is not None:
        flat = {name: score.masked_fill(~within[name].flatten(), -torch.inf) for name, score in flat.items()}
    if scope == "layer":
        kept = [_without_lowest(score, sparsity) for score in flat.values()]
    else:
        together = _without_lowest(torch.cat([*flat.values()]), sparsity)
        sizes = [len(score) for score in flat.values()]
        kept = list(torch.split(together, sizes))
    return {name: part.view_as(scores[name]) for name, part in zip(flat, kept, strict=True)}


def _without_lowest(scores: Tensor, sparsity: float) -> Tensor:
    """False for round(sparsity · n) of n scores."""
    removed = round(sparsity * len(scores))
    kept = torch.ones(len(scores), dtype=torch.bool)
    if removed:
        bound = scores.kthvalue(removed).values
        kept &= scores >= bound
        # As many of those at the bound as are still to go.
        ties = (scores == bound).nonzero()[:, 0]
        kept[ties[: removed - int((~kept).sum())]] = False
    return kept


def keep_n_of_m(scores: Mapping[str, Tensor], n: int, m: int) -> Masks:
    """Masks that keep the `n` best of every `m` weights that stand side by side in a row.

    Mishra et al. 2021 (https://arxiv.org/abs/2104.08378): 2 of 4 is what some GPUs compute faster.

    Raises:
        RecipeError: n is not below m, or m does not divide the inputs of a map.
    """
    if not 0 < n < m:
        raise RecipeError(f"{n}:{m} is no pattern; give fewer to keep than stand side by side, such as 2:4")
    masks: Masks = {}
    for name, score in scores.items():
        inputs = score[0].numel()
        if inputs % m:
            raise RecipeError(
                f"{n}:{m} does not fit {name}: {m} does not divide its {inputs} inputs; "
                "take another pattern, or sparsity without one"
            )
        groups = score.detach().float().reshape(-1, m)
        kept = torch.zeros_like(groups, dtype=torch.bool)
        kept.scatter_(1, groups.topk(n, dim=1).indices, value=True)
        masks[name] = kept.view_as(score)
    return masks


def random_masks(masks: Mapping[str, Tensor], seed: int) -> Masks:
    """As many weights kept in each tensor, but drawn by lot: the control of every ticket."""
    chance = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=chance)].view_as(mask)
        for name, mask in masks.items()
    }


def nonzero(model: nn.Module) -> Masks:
    """Masks that keep what is not zero in a network as it is."""
    return {name: weight.detach() != 0 for name, weight in prunable(model).items()}


def sparsity_of(masks: Mapping[str, Tensor]) -> float:
    """Fraction removed of all weights that the masks cover."""
    removed = sum(int((~mask).sum()) for mask in masks.values())
    return removed / max(1, sum(mask.numel() for mask in masks.values()))


def kept_by_part(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Fraction kept of the maps of an encoder's layers: of `query`, `key` and so on, a number a layer."""
    names = {id(weight): name for name, weight in model.named_parameters()}

    def kept(linear: nn.Linear) -> float:
        return float(masks[names[id(linear.weight)]].float().mean())

    parts = ("query", "key", "value", "output", "rising", "falling")
    return {part: [kept(getattr(layer, part)) for layer in layers_of(model)] for part in parts}


@torch.no_grad()
def remove(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set every weight that a mask does not keep to zero, in place."""
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)


@contextmanager
def held(model: nn.Module, masks: Mapping[str, Tensor]) -> Generator[None]:
    """Remove what masks do not keep, and let no training bring it back.

    A removed weight gets no gradient, so neither Adam's moments nor weight decay move it from zero.
    """
    remove(model, masks)
    hooks: list[Any] = [
        model.get_parameter(name).register_hook(lambda gradient, kept=mask: gradient * kept)  # pyright: ignore[reportUnknownLambdaType]
        for name, mask in masks.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def save_masks(masks: Mapping[str, Tensor], path: Path) -> None:
    """Write masks as safetensors, eight weights a byte, aside and then in one rename."""
    packed = {name: np.packbits(mask.numpy()) for name, mask in masks.items()}
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    aside = path.with_name(path.name + ".partial")
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(packed, aside, {"shapes": json.dumps(shapes)})
        os.replace(aside, path)


def load_masks(path: Path) -> Masks:
    """The inverse of `save_masks`."""
    with cast(Any, safe_open(path, framework="np")) as file:
        shapes: dict[str, list[int]] = json.loads(file.metadata()["shapes"])
        bits = {
            name: np.unpackbits(file.get_tensor(name), count=int(np.prod(shape)))
            for name, shape in shapes.items()
        }
    return {name: torch.from_numpy(bits[name].astype(bool)).reshape(shape) for name, shape in shapes.items()}

"""Whole channels and neurons of any network, removed for good: its matrices become smaller.

Li et al. 2017 (https://arxiv.org/abs/1608.08710), section 3: the filters of least magnitude go; Molchanov et
al. 2019 (https://arxiv.org/abs/1906.10771): those whose removal changes the loss least, to the first order of
its Taylor series, go: Σ |g w|. What hangs together (residual paths, norms, the inputs of the layers behind)
goes together: Fang et al. 2023, DepGraph (https://arxiv.org/abs/2301.12900), by its authors' library.

Encoders have `pocketlm.prune.structured`, which learns what to remove under a budget that was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from pocketlm.errors import MissingExtraError, RecipeError
from pocketlm.prune.masks import MAPS, Scope


def prune_channels(
    model: nn.Module,
    example: Tensor,
    sparsity: float,
    loss: Callable[[nn.Module], Tensor] | None = None,
    scope: Scope = "global",
    round_to: int = 8,
) -> None:
    """Remove a network's least important channels, in place; train it afterwards.

    Args:
        model: Any network; what its last map says stays whole.
        example: An input, [batch, …], to follow through the network.
        sparsity: Fraction of channels to remove, over all layers, or in scope `layer` of each.
        loss: One number that the network is judged by. A channel's importance is Σ |g w| then, g being the
            gradient, and Σ |w| without.
        scope: Whether all layers compete, or each for itself.
        round_to: Layers keep a multiple of so many channels, for the sake of fast kernels.

    Raises:
        RecipeError: the sparsity is out of range, or the network has no map to prune.
        MissingExtraError: torch-pruning is not installed.
    """
    if not 0 <= sparsity < 1:
        raise RecipeError(f"sparsity={sparsity} is out of range; allowed: 0 up to below 1")
    maps = [module for module in model.modules() if isinstance(module, MAPS)]
    if len(maps) < 2:
        raise RecipeError(
            f"the network has {len(maps)} linear maps and convolutions; give one of two or more"
        )
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch-pruning", "network") from error
    library = cast(Any, torch_pruning)
    importance = library.importance.GroupMagnitudeImportance(p=1)
    if loss is not None:
        model.zero_grad()
        loss(model).backward()
        importance = library.importance.GroupTaylorImportance()
    training = model.training
    library.pruner.BasePruner(
        model.eval(),
        example,
        importance=importance,
        pruning_ratio=sparsity,
        global_pruning=scope == "global",
        round_to=round_to,
        ignored_layers=[maps[-1]],
    ).step()
    model.zero_grad()
    model.train(training)

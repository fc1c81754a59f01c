"""Prune a language model that writes from left to right, layer after layer, without training.

Sun et al. 2024 (Wanda) and Frantar and Alistarh 2023 (SparseGPT): a layer is given what the pruned layers
before it make of calibration texts, its maps are pruned by what they read, and its new output goes to the
next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pocketlm.artifact import Artifact
from pocketlm.distill.online import corpus_texts
from pocketlm.errors import DataError, RecipeError, TeacherError
from pocketlm.models.decoder import Decoder, load_decoder, windows
from pocketlm.progress import Progress, Quiet
from pocketlm.prune.magnitude import parsed_pattern
from pocketlm.prune.masks import keep_best, keep_n_of_m, nonzero, sparsity_of
from pocketlm.prune.sparsegpt import sparsegpt
from pocketlm.prune.wanda import wanda
from pocketlm.stage import Context

Method = Literal["magnitude", "wanda", "sparsegpt"]
HELD_OUT = 10
"""One of so many texts is held out where there is no file to measure on."""
Pruned = Callable[[Tensor, Tensor, float, tuple[int, int] | None], Tensor]
"""(weight [outputs, inputs], X Xᵀ [inputs, inputs], sparsity, pattern) to the pruned weight."""


def by_magnitude(
    weight: Tensor, gram: Tensor, sparsity: float, pattern: tuple[int, int] | None = None
) -> Tensor:
    """The smallest weights of the map removed: the baseline of both papers."""
    del gram
    scores = {"the map": weight.abs()}
    mask = keep_best(scores, sparsity) if pattern is None else keep_n_of_m(scores, *pattern)
    return weight * mask["the map"]


METHODS: dict[Method, Pruned] = {"magnitude": by_magnitude, "wanda": wanda, "sparsegpt": sparsegpt}


class _StopError(Exception):
    """The first layer was reached."""


@torch.no_grad()
def prune_layers(
    decoder: Decoder,
    texts: Sequence[str],
    method: Method = "sparsegpt",
    sparsity: float = 0.5,
    pattern: str | None = None,
    samples: int = 64,
    length: int = 256,
    progress: Progress | None = None,
) -> None:
    """Prune all linear maps of a decoder's layers, in place.

    Args:
        decoder: Embeddings and head stay whole.
        texts: The user's, for calibration.
        method: How.
        sparsity: Fraction to remove of every map.
        pattern: `N:M` keeps N of every M side by side instead.
        samples: Windows of the texts that are read, from the first.
        length: Pieces of a window.
        progress: Shows the layers.

    Raises:
        RecipeError: the sparsity or the pattern is none, or there is too little text.
        TeacherError: the model has no list of layers.
    """
    ids = decoder.ids(texts)
    read = windows(ids, length)[:samples]
    if not len(read):
        raise RecipeError(f"the texts have {len(ids)} pieces, fewer than one window of {length}; give more")
    side_by_side = None if pattern is None else parsed_pattern(pattern)
    layers = decoder_layers(decoder.model)
    states, options = first_inputs(decoder.model, layers[0], read)
    with (progress or Quiet()).task(f"prune by {method}", len(layers)) as advance:
        for layer in layers:
            for linear, gram in grams(layer, states, options):
                linear.weight.copy_(METHODS[method](linear.weight, gram, sparsity, side_by_side))
            states = [_output(layer, state, options) for state in states]
            advance(1)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of layers.

    Raises:
        TeacherError: there is none.
    """
    found = getattr(cast(Any, model).base_model, "layers", None)
    if not isinstance(found, nn.ModuleList):
        raise TeacherError(
            f"{type(model).__name__} has no list of layers called layers; use a model built as LLaMA is"
        )
    return found


def first_inputs(model: nn.Module, first: nn.Module, read: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """What the first layer is given: states of every window, [1, length, hidden], and their options."""
    states: list[Tensor] = []
    shared: dict[str, Any] = {}

    def stop(_: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        states.append(given[0] if given else options["hidden_states"])
        shared.update({name: value for name, value in options.items() if name != "hidden_states"})
        raise _StopError

    hook = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for window in read:
            try:
                model(input_ids=window[None], use_cache=False)
            except _StopError:
                continue
    finally:
        hook.remove()
    return states, shared


def grams(
    layer: nn.Module, states: Sequence[Tensor], options: dict[str, Any]
) -> list[tuple[nn.Linear, Tensor]]:
    """X Xᵀ of what each linear map of a layer reads, over all windows: [inputs, inputs] each."""
    maps = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    found = {id(linear): torch.zeros(linear.in_features, linear.in_features) for linear in maps}

    def add(linear: nn.Module, given: tuple[Tensor, ...]) -> None:
        read = given[0].reshape(-1, given[0].shape[-1]).float()
        found[id(linear)].addmm_(read.T, read)

    hooks = [linear.register_forward_pre_hook(add) for linear in maps]
    for state in states:
        _output(layer, state, options)
    for hook in hooks:
        hook.remove()
    return [(linear, found[id(linear)]) for linear in maps]


def _output(layer: nn.Module, state: Tensor, options: dict[str, Any]) -> Tensor:
    said: Any = layer(state, **options)
    return cast(Tensor, said[0] if isinstance(said, tuple) else said)


def corpus_and_held_out(artifact: Artifact) -> tuple[list[str], list[str]]:
    """The texts to calibrate on, and those to measure on: a file of its own, or the corpus's last tenth.

    Raises:
        DataError: there is too little text.
    """
    texts = corpus_texts(artifact.parts["train_source"])
    if "valid_source" in artifact.parts:
        return texts, corpus_texts(artifact.parts["valid_source"])
    kept = len(texts) - len(texts) // HELD_OUT
    if kept == len(texts):
        raise DataError(
            f"the corpus has {len(texts)} texts; give {HELD_OUT} or more, or a file to measure on"
        )
    return texts[:kept], texts[kept:]


@dataclass(frozen=True)
class PruneDecoder:
    """Prune a language model that writes, calibrated on the user's text.

    Args:
        method: How.
        sparsity: Fraction to remove of every linear map of the layers.
        pattern: `N:M` keeps N of every M side by side instead.
        samples: Windows of the text that are read, from the first.
        length: Pieces of a window.
    """

    method: Method = "sparsegpt"
    sparsity: float = 0.5
    pattern: str | None = None
    samples: int = 64
    length: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise RecipeError(f"sparsity={self.sparsity} is out of range; allowed: above 0 and below 1")
        if self.pattern is not None:
            parsed_pattern(self.pattern)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part `decoder`, as transformers writes it, and the figure `pruned`."""
        decoder = load_decoder(artifact.parts["teacher_source"])
        texts, _ = corpus_and_held_out(artifact)
        prune_layers(
            decoder, texts, self.method, self.sparsity, self.pattern, self.samples, self.length,
            context.progress,
        )  # fmt: skip
        found = {"sparsity": sparsity_of(nonzero(decoder.model)), "sparsity_of": "layers, embeddings out"}
        decoder.save(context.folder / "decoder")
        return artifact.with_part("decoder", context.folder / "decoder").with_figures(pruned=found)

"""What neurons, heads and hidden units of a teacher do on calibration texts, and which of them matter.

The saliency of a part is what it adds to the residual stream on average, in the spirit of Michel et al. 2019
(https://arxiv.org/abs/1905.10650), who ask for every head what the model loses without it.

Deviations: no gradients. A neuron's saliency is its mean |activation| times the norm of its outgoing
weights; a head's is the mean norm of what its output map makes of it. Hidden units are chosen one after
the other, each the one with the most left of its second moment when what the others explain, linearly, is
taken out (a Cholesky decomposition with pivots, Higham 2002, "Accuracy and Stability of Numerical
Algorithms", section 10.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pocketlm.models.families import Site, family_of, layers_of, pool_of, pooled_maps
from pocketlm.models.load import EVALUATION_BATCH, Classifier
from pocketlm.tokenization.encode import Encoded


class _EnoughError(Exception):
    """All sites of a batch were seen."""


@torch.no_grad()
def visit(
    classifier: Classifier, encoded: Encoded, sites: Sequence[Site], see: Callable[[int, Tensor], None]
) -> None:
    """Run a model, no further than needed, and show what passes at some places, padding left out.

    A layer that the model shares between depths is seen at every depth.

    Args:
        classifier: In any mode; it runs without dropout and is left in evaluation mode.
        encoded: Its inputs.
        sites: Places.
        see: Called with a site's index and its activations, [positions, width]; at a place behind the pooling
            of a text, [examples, width].
    """
    mask = torch.zeros(0, dtype=torch.bool)
    seen: set[int] = set()
    repeats = family_of(classifier.model).shared

    def hook(index: int) -> Callable[..., None]:
        def run(module: Any, arguments: Any, output: Any = None) -> None:
            del module
            value: Tensor = arguments[0] if sites[index][1] == "in" else output
            # DeBERTa-v2 sends its table of positions through the maps of the hidden units as well.
            if (index in seen and not repeats) or (value.dim() == 3 and value.shape[:2] != mask.shape):
                return
            seen.add(index)
            see(index, value[mask] if value.dim() == 3 else value)
            if len(seen) == len(sites) and not repeats:
                raise _EnoughError

        return run

    hooks = [
        module.register_forward_pre_hook(hook(index))
        if side == "in"
        else module.register_forward_hook(hook(index))
        for index, (module, side) in enumerate(sites)
    ]
    classifier.model.eval()
    try:
        for start in range(0, len(encoded), EVALUATION_BATCH):
            seen.clear()
            inputs = classifier.inputs(encoded, range(start, min(start + EVALUATION_BATCH, len(encoded))))
            mask = inputs["attention_mask"].bool()
            with suppress(_EnoughError):
                classifier.model(**inputs)
    finally:
        for handle in hooks:
            handle.remove()


def capture(classifier: Classifier, encoded: Encoded, sites: Sequence[Site]) -> list[Tensor]:
    """All that passes at some places of a model: for each, [positions, width] (see `visit`)."""
    found: list[list[Tensor]] = [[] for _ in sites]
    visit(classifier, encoded, sites, lambda index, value: found[index].append(value))
    return [torch.cat(values) for values in found]


Term = tuple[Site, Callable[[Tensor], Tensor]]
"""A site, and a function from its activations [positions, width] to a sum over positions."""


def means(classifier: Classifier, encoded: Encoded, terms: Sequence[Term]) -> list[Tensor]:
    """Means over positions of functions of what passes at some places, all in one run."""
    sums: dict[int, Tensor] = {}
    counts = [0] * len(terms)

    def see(index: int, value: Tensor) -> None:
        sums[index] = sums.get(index, torch.zeros(())) + terms[index][1](value)
        counts[index] += len(value)

    visit(classifier, encoded, [site for site, _ in terms], see)
    return [sums[index] / counts[index] for index in range(len(terms))]


@dataclass(frozen=True)
class Survey:
    """What a run over calibration texts says of every part of a teacher.

    Args:
        neurons: Saliency of FFN neurons, [intermediate] a layer.
        heads: Saliency of heads, [heads] a layer.
        queries: Second moments of each head's queries, [heads, size, size] a layer; likewise the next two.
        keys: Of the keys.
        values: Of the joined values, which the output map reads.
        hidden: Second moments of what attention and FFN read, each of trace 1, [hidden, hidden] a layer.
        pool: Saliency of the units of the head's pool, [hidden]; None without a pool.
    """

    neurons: list[Tensor]
    heads: list[Tensor]
    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    hidden: list[Tensor]
    pool: Tensor | None


def survey(teacher: Classifier, encoded: Encoded) -> Survey:
    """Run the teacher once over calibration texts and note what its parts do."""
    heads = int(cast(Any, teacher.model).config.num_attention_heads)
    layers = layers_of(teacher.model)
    last = pooled_maps(teacher.model)

    def moments(value: Tensor) -> Tensor:
        per_head = _by_head(value, heads)
        return per_head.mT @ per_head

    groups: list[list[Term]] = [
        [_neuron_term(layer.falling) for layer in layers],
        [_head_term(layer.output, heads) for layer in layers],
        [((layer.query, "out"), moments) for layer in layers],
        [((layer.key, "out"), moments) for layer in layers],
        [((layer.output, "in"), moments) for layer in layers],
        [((layer.query, "in"), _second_moment) for layer in layers],
        [((layer.rising, "in"), _second_moment) for layer in layers],
        [_neuron_term(linear) for linear in last],
    ]
    found = iter(means(teacher, encoded, [term for group in groups for term in group]))
    neurons, salient, queries, keys, values, read, risen, pool = [
        [next(found) for _ in group] for group in groups
    ]
    return Survey(
        neurons=[_outgoing(mean, layer.falling) for mean, layer in zip(neurons, layers, strict=True)],
        heads=salient,
        queries=queries,
        keys=keys,
        values=values,
        hidden=[one / one.trace() + two / two.trace() for one, two in zip(read, risen, strict=True)],
        pool=torch.stack([_outgoing(mean, linear) for mean, linear in zip(pool, last, strict=True)]).sum(
            dim=0
        )
        if last
        else None,
    )


def flat_survey(teacher: Classifier) -> Survey:
    """The survey that finds no difference between parts, for a student that takes only a shape."""
    config = cast(Any, teacher.model.config)
    layers, heads, hidden = layers_of(teacher.model), config.num_attention_heads, config.hidden_size
    moments = [torch.eye(layer.query.out_features // heads).repeat(heads, 1, 1) for layer in layers]
    return Survey(
        neurons=[torch.ones(layer.falling.in_features) for layer in layers],
        heads=[torch.ones(heads) for _ in layers],
        queries=moments,
        keys=moments,
        values=moments,
        hidden=[torch.eye(hidden) for _ in layers],
        pool=None if pool_of(teacher.model) is None else torch.ones(hidden),
    )


def neuron_saliency(teacher: Classifier, encoded: Encoded) -> list[Tensor]:
    """Mean |activation| · ‖outgoing weights‖ of every FFN neuron: one [intermediate] a layer.

    Padding is left out of the mean.
    """
    outgoing = [layer.falling for layer in layers_of(teacher.model)]
    found = means(teacher, encoded, [_neuron_term(falling) for falling in outgoing])
    return [_outgoing(mean, falling) for mean, falling in zip(found, outgoing, strict=True)]


def _neuron_term(falling: nn.Linear) -> Term:
    return (falling, "in"), lambda value: value.abs().sum(dim=0)


def _outgoing(mean: Tensor, falling: nn.Linear) -> Tensor:
    return mean * falling.weight.detach().square().sum(dim=0).sqrt()


def _head_term(output: nn.Linear, heads: int) -> Term:
    """Norms of what each head adds to the residual stream."""
    weight = _by_head(output.weight.detach(), heads)  # [heads, hidden, size]
    gram = weight.mT @ weight

    def norms(value: Tensor) -> Tensor:
        per_head = _by_head(value, heads)  # [heads, positions, size]
        return ((per_head @ gram) * per_head).sum(dim=2).clamp_min(0).sqrt().sum(dim=1)

    return (output, "in"), norms


def _by_head(value: Tensor, heads: int) -> Tensor:
    """[rows, heads · size] to [heads, rows, size]."""
    return value.reshape(len(value), heads, -1).transpose(0, 1)


def _second_moment(value: Tensor) -> Tensor:
    return value.T @ value


def principal_directions(moment: Tensor, size: int) -> Tensor:
    """Orthonormal directions in which vectors are longest, by their second moment.

    Not centred, unlike principal components: a projection then has no offset to be remembered, and
    lengths relative to the teacher's keep their meaning.

    Args:
        moment: Sum of x xᵀ over vectors x, [hidden, hidden].
        size: Directions to take.

    Returns:
        [hidden, size], of the moment's type, the longest first.
    """
    vectors = cast(Tensor, torch.linalg.eigh(moment.double()).eigenvectors)  # the longest comes last
    directions = vectors.flip(-1)[:, :size]
    # An eigenvector's sign is free; the largest entry is made positive, so that every machine agrees.
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return (directions * largest.sign()).to(moment.dtype).contiguous()


def salient_units(moment: Tensor, size: int) -> list[int]:
    """The `size` hidden units from which the others follow best, ascending.

    Each is the one with the most left of its second moment when what the chosen ones explain is taken out.
    """
    left = moment.double().clone()
    scale = float(left.diagonal().max())
    chosen: list[int] = []
    for _ in range(size):
        diagonal = left.diagonal().clone()
        diagonal[chosen] = -1.0
        best = int(diagonal.argmax())
        chosen.append(best)
        if diagonal[best] > 1e-12 * scale:
            left -= torch.outer(left[best], left[best]) / diagonal[best]
    return sorted(chosen)

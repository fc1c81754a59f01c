"""Fit a cut student's maps, one after the other, to what its teacher computes at the same places.

After a cut every map reads inputs that are no longer the teacher's. Each is solved anew by least squares on
calibration texts, in the order in which the model runs, reading the student's own state so far and
aiming at the teacher's next state. So errors of earlier maps are mended by later ones instead of adding up.

After layer-wise least squares in structured pruning (He et al. 2017, https://arxiv.org/abs/1707.06168,
section 3.1) and in SparseGPT (Frantar and Alistarh 2023, https://arxiv.org/abs/2301.00774, section 3).

Deviations: the ridge penalty pulls towards the cut weights, not towards zero, so a cut that loses nothing
changes nothing. A LayerNorm's γ and β are solved too, one regression for each unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from pocketlm.models.families import (
    Site,
    activation_of,
    family_of,
    head_maps,
    layers_of,
    pool_of,
    stream_of,
)
from pocketlm.models.load import Classifier
from pocketlm.models.saliency import capture
from pocketlm.tokenization.encode import Encoded

PENALTY = 1e-3
HEAD_PENALTY = 1e-2


@torch.no_grad()
def fit_linear(linear: nn.Linear, inputs: Tensor, targets: Tensor, penalty: float = PENALTY) -> None:
    """Ridge regression from inputs to targets, in place, with the penalty on the change of the weights.

    W = argmin ‖X Wᵀ + b - Y‖² + λ ‖W - W₀‖²; b carries no penalty.

    Args:
        linear: Starts from W₀.
        inputs: X, [examples, in].
        targets: Y, [examples, out].
        penalty: λ over the mean square of X's columns about their means, times the number of examples.
    """
    left = targets - inputs @ linear.weight.T
    centre, missing = inputs.mean(dim=0), left.mean(dim=0)
    around = inputs - centre
    gram = around.T @ around
    gram.diagonal().add_(penalty * gram.diagonal().mean().clamp_min(1e-12))
    goal = (around.T @ (left - missing)).double()
    change = torch.cholesky_solve(goal, cast(Tensor, torch.linalg.cholesky(gram.double()))).T.float()
    linear.weight += change
    if linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        linear.bias.copy_(missing - change @ centre)


@torch.no_grad()
def fit_norm(norm: nn.LayerNorm, inputs: Tensor, targets: Tensor) -> None:
    """Least squares of γ and β, one regression a unit, in place.

    Args:
        norm: A LayerNorm over `width` units.
        inputs: What it is given, [examples, width].
        targets: What it should give, [examples, width].
    """
    normed = nn.functional.layer_norm(inputs, norm.normalized_shape, eps=norm.eps)
    centre, goal = normed.mean(dim=0), targets.mean(dim=0)
    spread = (normed - centre).square().sum(dim=0)
    slope = ((normed - centre) * (targets - goal)).sum(dim=0) / spread.clamp_min(1e-9)
    norm.weight.copy_(slope)
    norm.bias.copy_(goal - slope * centre)


@torch.no_grad()
def refit(
    student: Classifier,
    teacher: Classifier,
    wide: nn.Module,
    basis: Tensor,
    layers: Sequence[int],
    encoded: Encoded,
) -> None:
    """Fit the student's norms and maps to the teacher's states on `basis`, in place.

    Args:
        student: Cut out of `wide`, reading the teacher's pieces.
        teacher: Whole.
        wide: The teacher with the student's layers, neurons and heads, at the teacher's width.
        basis: The student's hidden units as directions of the teacher's, [hidden, student's hidden].
        layers: The teacher's layer of every layer of the student.
        encoded: Calibration texts in the teacher's pieces.
    """
    _fit_stream(student, teacher, basis, encoded)
    pre_norm = family_of(teacher.model).pre_norm
    activate = activation_of(student.model)
    theirs = layers_of(teacher.model)
    sites: list[Site] = []
    for index in layers:
        layer = theirs[index]
        sites.extend(((layer.query, "in"), layer.attention_sum, (layer.rising, "in"), layer.ffn_sum))
    states = capture(teacher, encoded, sites)
    for number, (mine, full) in enumerate(zip(layers_of(student.model), layers_of(wide), strict=True)):
        read, attended, risen, summed = states[4 * number : 4 * number + 4]
        if pre_norm:
            (given,) = capture(student, encoded, [(mine.attention_norm, "in")])
            fit_norm(mine.attention_norm, given, read @ basis)
        (given,) = capture(student, encoded, [(mine.query, "in")])
        for small, large in ((mine.query, full.query), (mine.key, full.key), (mine.value, full.value)):
            fit_linear(small, given, large(read))
        given, reached = capture(student, encoded, [(mine.output, "in"), mine.attention_sum])
        stream = _fit_branch(mine.output, given, reached, attended @ basis)
        norm = mine.ffn_norm if pre_norm else mine.attention_norm
        fit_norm(norm, stream, risen @ basis)
        given = norm(stream)
        fit_linear(mine.rising, given, full.rising(risen))
        neurons = activate(mine.rising(given))
        before = (stream if pre_norm else given) + mine.falling(neurons)
        stream = _fit_branch(mine.falling, neurons, before, summed @ basis)
        if not pre_norm:
            fit_norm(mine.ffn_norm, stream, theirs[layers[number]].ffn_norm(summed) @ basis)
    if pre_norm:
        last, whole = stream_of(student.model).norms[-1], stream_of(teacher.model).norms[-1]
        (goal,), (given,) = (
            capture(teacher, encoded, [(whole, "out")]),
            capture(student, encoded, [(last, "in")]),
        )
        fit_norm(last, given, goal @ basis)
    _fit_head(student, teacher, wide, encoded)


def _fit_branch(linear: nn.Linear, given: Tensor, reached: Tensor, goal: Tensor) -> Tensor:
    """Fit the last map of a branch so that the residual sum behind it comes to `goal`.

    Returns:
        The sum that it comes to.
    """
    residual = reached - linear(given)
    fit_linear(linear, given, goal - residual)
    return residual + linear(given)


def _fit_stream(student: Classifier, teacher: Classifier, basis: Tensor, encoded: Encoded) -> None:
    """Fit what gives the first hidden state: the map from embedding units, and the norms behind it."""
    mine, theirs = stream_of(student.model), stream_of(teacher.model)
    if len(mine.writers) > len(theirs.writers):  # the student's table is factorised, the teacher's is not
        (goal,) = capture(teacher, encoded, [(theirs.norms[0], "in")])
        (given,) = capture(student, encoded, [(mine.writers[0], "in")])
        fit_linear(mine.writers[0], given, goal @ basis)
    for small, large in zip(mine.writers, theirs.writers, strict=False):
        (goal,) = capture(teacher, encoded, [(large, "out")])
        (given,) = capture(student, encoded, [(small, "in")])
        fit_linear(small, given, goal @ basis)
    if family_of(teacher.model).pre_norm or not mine.norms:
        return
    (goal,) = capture(teacher, encoded, [(theirs.norms[0], "out")])
    (given,) = capture(student, encoded, [(mine.norms[0], "in")])
    fit_norm(mine.norms[0], given, goal @ basis)
    if basis.shape[0] == basis.shape[1]:
        return
    # DeBERTa-v2 norms its table of positions before use, so a table of its own can give what it should.
    if mine.tables and len(mine.norms) > 1:
        small, table = mine.norms[1], mine.tables[-1]
        goal = theirs.norms[1](theirs.tables[-1].weight) @ basis
        steep = torch.where(small.weight.abs() < 1e-3, torch.full_like(small.weight, 1e-3), small.weight)
        table.weight.copy_((goal - small.bias) / steep)
        fit_norm(small, table.weight, goal)


def _fit_head(student: Classifier, teacher: Classifier, wide: nn.Module, encoded: Encoded) -> None:
    """Fit the pool of the head, then the map to the logits."""
    small, large = pool_of(student.model), pool_of(teacher.model)
    if small is not None and large is not None:
        (given,) = capture(student, encoded, [(small, "in")])
        (read,) = capture(teacher, encoded, [(large, "in")])
        kept = cast(nn.Linear, pool_of(wide))
        fit_linear(small, given, kept(read), HEAD_PENALTY)
    for last, whole in zip(head_maps(student.model), head_maps(teacher.model), strict=True):
        (given,) = capture(student, encoded, [(last, "in")])
        (goal,) = capture(teacher, encoded, [(whole, "out")])
        fit_linear(last, given, goal, HEAD_PENALTY)


@torch.no_grad()
def fit_head(student: Classifier, texts: Sequence[tuple[str, ...]], logits: np.ndarray) -> None:
    """Fit the last map of a fresh head to the teacher's logits by ridge regression, in place.

    Args:
        student: Has one such map.
        texts: Training texts.
        logits: The teacher's of these texts, [texts, outputs].
    """
    (last,) = head_maps(student.model)
    (given,) = capture(student, student.encode(texts), [(last, "in")])
    fit_linear(last, given, torch.from_numpy(logits), HEAD_PENALTY)

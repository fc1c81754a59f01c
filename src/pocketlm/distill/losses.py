"""Distances between what a student and its teacher say: pure functions, one loss an example.

Each is 0 when student equals teacher, and padding (mask False) never changes it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketlm.tasks.task import Kind

LogitLoss = Literal["kl", "mse"]


def logit_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of softened class probabilities, times temperature².

    Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), section 2: KL(p_T ‖ p_S) with
    p = softmax(logits / temperature); the square keeps the gradient's size independent of it.

    Args:
        student: Logits, [batch, labels].
        teacher: Logits, [batch, labels].
        temperature: Above 0; higher says more of the unlikely labels.

    Returns:
        Nats, [batch].
    """
    student_log = F.log_softmax(student / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher / temperature, dim=-1)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1) * temperature**2


def logit_bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of each label's softened yes and no, mean over labels, times temperature².

    `logit_kl` where an example may have several labels: each logit is a choice of its own, p = sigmoid(logit
    / temperature).

    Args:
        student: Logits, [batch, labels].
        teacher: Logits, [batch, labels].
        temperature: Above 0.

    Returns:
        Nats, [batch].
    """
    ours, theirs = student / temperature, teacher / temperature
    yes = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    no = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return (yes + no).mean(dim=-1) * temperature**2


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of logits (Ba and Caruana 2014, https://arxiv.org/abs/1312.6184, eq. 1).

    Args:
        student: Logits, [batch, outputs].
        teacher: Logits, [batch, outputs].

    Returns:
        Squared logits, [batch].
    """
    return ((student - teacher) ** 2).mean(dim=-1)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of hidden states over the teacher's squares, both summed over unmasked positions.

    TinyBERT (Jiao et al. 2020, https://arxiv.org/abs/1909.10351), eq. 8, over the teacher's own squared
    norm: 0 where they agree, 1 for a student that says nothing, whatever the scale of the layer.

    Args:
        student: Hidden states, [batch, length, width].
        teacher: Hidden states, [batch, length, width].
        mask: True where a position counts, [batch, length].

    Returns:
        A ratio, [batch]; 0 for an example without any unmasked position.
    """
    weights = mask.to(student.dtype)
    distance = ((student - teacher) ** 2).sum(dim=-1) * weights
    norm = (teacher**2).sum(dim=-1) * weights
    return distance.sum(dim=-1) / norm.sum(dim=-1).clamp_min(1e-6)


def logit_distance(
    student: Tensor, teacher: Tensor, loss: LogitLoss, temperature: float, kind: Kind
) -> Tensor:
    """The distance of logits that a stage asks for; in regression, always the squared one.

    Args:
        student: [batch, outputs].
        teacher: [batch, outputs].
        loss: `kl` or `mse`.
        temperature: Of `kl`.
        kind: Of the task: a number has no probabilities, and of several labels each has its own.

    Returns:
        [batch].
    """
    if kind == "regression" or loss == "mse":
        return logit_mse(student, teacher)
    distance = logit_bernoulli_kl if kind == "multilabel" else logit_kl
    return distance(student, teacher, temperature)


def state_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of states, over features and unmasked positions.

    TinyBERT (Jiao et al. 2020, https://arxiv.org/abs/1909.10351), eq. 8, MSE(H_S W_h, H_T), and eq. 9,
    MSE(E_S W_e, E_T); the learned map W is the caller's.

    Args:
        student: Projected states, [batch, length, width].
        teacher: States, [batch, length, width].
        mask: True where a position counts, [batch, length].

    Returns:
        Squared units of the state, [batch]; 0 for an example without any unmasked position.
    """
    return _mean(((student - teacher) ** 2).mean(dim=-1), mask)


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of attention scores before softmax, over heads and unmasked pairs.

    TinyBERT (Jiao et al. 2020, https://arxiv.org/abs/1909.10351), eq. 7: 1/h · Σ MSE(A_S, A_T). A pair
    counts where both of its positions do. The published code sets scores of -100 and less to 0 and
    averages over all pairs, so that padded rows count there and a text's loss depends on its neighbours.

    Args:
        student: Scores, [batch, heads, length, length].
        teacher: Scores, [batch, heads, length, length].
        mask: True where a position counts, [batch, length].

    Returns:
        Squared scores, [batch]; 0 for an example without any unmasked position.
    """
    pairs = mask[:, :, None] & mask[:, None, :]  # [batch, length, length]
    # Masked before squaring: what stands at padding may overflow, and infinity times 0 is not 0.
    difference = (student - teacher).masked_fill(~pairs[:, None], 0.0)
    return (difference**2).mean(dim=1).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp_min(1)


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Kullback-Leibler divergence of self-attention relations, over relation heads and positions.

    MiniLMv2 (Wang et al. 2021, https://arxiv.org/abs/2012.15828), eq. 5 and 6: queries (or keys, or
    values) of all heads are put side by side and cut anew into A_r relation heads;
    R = softmax(X Xᵀ / √d_r), and the loss is 1 / (A_r · |x|) · Σ KL(R_T ‖ R_S). Neither the number of
    attention heads nor the width has to be the same.

    Args:
        student: Queries, keys or values, [batch, length, student width].
        teacher: The same of the teacher, [batch, length, teacher width].
        mask: True where a position counts, as a row and as a column of R, [batch, length].
        heads: Relation heads; divides both widths.

    Returns:
        Nats, [batch]; 0 for an example without any unmasked position.
    """
    ours, theirs = _log_relations(student, mask, heads), _log_relations(teacher, mask, heads)
    columns = ~mask[:, None, None, :]
    divergence = (theirs.exp() * (theirs - ours)).masked_fill(columns, 0.0).sum(dim=-1)
    return _mean(divergence.mean(dim=1), mask)  # of [batch, heads, length]


def _log_relations(states: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Logarithm of R of eq. 6, [batch, heads, length, length]; columns of padding are next to -∞."""
    batch, length, width = states.shape
    # What stands at padding may be anything; its products must stay finite.
    cut = states.masked_fill(~mask[..., None], 0.0).reshape(batch, length, heads, width // heads)
    cut = cut.transpose(1, 2)  # [batch, heads, length, width / heads]
    scores = cut @ cut.transpose(2, 3) / math.sqrt(width // heads)
    lowest = torch.finfo(scores.dtype).min / 2
    return F.log_softmax(scores.masked_fill(~mask[:, None, None, :], lowest), dim=-1)


def cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """1 - cosine of the angle between states, mean over unmasked positions.

    DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108), section 3, L_cos.

    Args:
        student: States, [batch, length, width].
        teacher: States, [batch, length, width].
        mask: True where a position counts, [batch, length].

    Returns:
        0 to 2, [batch]; 0 for an example without any unmasked position.
    """
    return _mean(1 - F.cosine_similarity(student, teacher, dim=-1), mask)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of [batch, length] over unmasked positions, [batch]; 0 where there is none."""
    return values.masked_fill(~mask, 0.0).sum(dim=-1) / mask.sum(dim=-1).clamp_min(1)

"""Distances between what a student and its teacher say: pure functions, one loss an example.

Each is 0 when student equals teacher, and padding (mask False) never changes it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


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
    """Squared distance of hidden states relative to the teacher's length, mean over unmasked positions.

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

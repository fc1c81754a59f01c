"""How much of what each layer of a teacher says can be found in a student's layers?

Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited"
(https://arxiv.org/abs/1905.00414), eq. 3: linear centred kernel alignment, which asks neither for equal
widths nor for equal bases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pocketlm.models.load import Classifier


@dataclass(frozen=True)
class Likeness:
    """A layer of the student, and the teacher's that is most like it.

    Args:
        layer: Of the student; 0 is its embeddings.
        teacher: Layer of the teacher.
        cka: Their alignment, 0 to 1.
    """

    layer: int
    teacher: int
    cka: float


def likeness(student: Classifier, teacher: Classifier, texts: Sequence[tuple[str, ...]]) -> list[Likeness]:
    """For every layer of the student, the teacher's most like it.

    Args:
        student: See the module.
        teacher: Of any width, depth and vocabulary.
        texts: Real inputs, more than some tens; a text is the mean over its pieces.
    """
    ours, theirs = states(student, texts), states(teacher, texts)
    found: list[Likeness] = []
    for layer, state in enumerate(ours):
        values = [cka(state, other) for other in theirs]
        best = int(np.argmax(values))
        found.append(Likeness(layer, best, values[best]))
    return found


def cka(one: np.ndarray, other: np.ndarray) -> float:
    """Linear CKA of two representations of the same examples.

    Args:
        one: [examples, width].
        other: [examples, another width].

    Returns:
        0 to 1; 1 where they differ by a rotation and a scale.
    """
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    both = np.square(other.T @ one).sum()
    each = np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other)
    return float(both / each) if each else 0.0


@torch.no_grad()
def states(classifier: Classifier, texts: Sequence[tuple[str, ...]]) -> list[np.ndarray]:
    """The embeddings and every layer's output, each the mean over a text's pieces, [texts, width]."""
    encoded = classifier.encode(texts)
    classifier.model.eval()
    rows: list[list[np.ndarray]] = []
    for index in range(len(encoded)):
        output = classifier.model.base_model(**classifier.inputs(encoded, [index]), output_hidden_states=True)
        rows.append([state[0].float().mean(dim=0).numpy() for state in output.hidden_states])
    return [np.stack(layer) for layer in zip(*rows, strict=True)]

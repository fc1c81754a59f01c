"""Fit the biases of a student's answers to its teacher, on texts that the student has not learned.

Guo et al. 2017, On Calibration of Modern Neural Networks (https://arxiv.org/abs/1706.04599), section 4.2
(vector scaling), on valid. A student is surer on new texts than its teacher, and a label for all that is none
of the others suffers most: of CLINC150's texts out of scope it finds half of what its teacher finds
(docs/experiments/0011).

Deviations: the teacher's probabilities are fitted and not labels, so no label of valid is used; biases alone,
no scales; a Gaussian prior keeps biases near 0 where texts are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.data.sample import few
from pocketlm.distill.losses import logit_distance
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier, output_layer, student_of, with_student
from pocketlm.stage import Context
from pocketlm.supervised import valid_score
from pocketlm.tasks.task import Kind
from pocketlm.tasks.words import WordLogits

STEPS = 200


def fitted_biases(student: Tensor, teacher: Tensor, kind: Kind, spread: float) -> Tensor:
    """The biases that bring a student's probabilities nearest to its teacher's.

    Args:
        student: Logits, [texts, outputs].
        teacher: Logits, [texts, outputs].
        kind: Of the task; see `pocketlm.distill.losses.logit_distance`.
        spread: Standard deviation of a bias before any text was seen.

    Returns:
        [outputs].
    """
    biases = torch.zeros(student.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([biases], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        distance = logit_distance(student + biases, teacher, "kl", 1.0, kind).mean()
        total = distance + biases.square().sum() / (2 * spread**2 * len(student))
        total.backward()
        return total

    optimizer.step(loss)  # pyright: ignore[reportArgumentType] (a closure's loss may be a tensor)
    return biases.detach()


@dataclass(frozen=True)
class Calibrate:
    """Fit the biases of the student's last map to the teacher's answers on valid.

    Of a task that only asks for words, nothing is changed.

    Args:
        texts: Of valid that are read, at most.
        spread: Standard deviation of a bias before any text was seen; smaller trusts few texts less.
    """

    texts: int = 5000
    spread: float = 3.0

    def __post_init__(self) -> None:
        if self.texts < 1 or self.spread <= 0:
            raise RecipeError(
                f"texts={self.texts} and spread={self.spread}: allowed are 1 or more, and above 0"
            )

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student` and its score on valid; adds the figure `calibration` (distances)."""
        task = artifact.task
        if not task.outputs:
            return artifact
        valid = load_split(artifact.parts["data"], "valid")
        student = student_of(artifact)
        teacher = Classifier.load(artifact.parts["teacher"], task, student.max_length)
        ours, theirs = (_of_texts(one, few(valid.texts, self.texts)) for one in (student, teacher))
        biases = fitted_biases(ours, theirs, task.kind, self.spread)
        with torch.no_grad():
            output_layer(student.model).bias.add_(biases)
        before, after = (
            float(logit_distance(said, theirs, "kl", 1.0, task.kind).mean()) for said in (ours, ours + biases)
        )
        score = valid_score(student, student.encode(valid.texts), valid)
        return with_student(
            artifact,
            student,
            context,
            calibration={"before": before, "after": after},
            distil={**artifact.figures.get("distil", {}), "valid_score": score},
        )


def _of_texts(classifier: Classifier, texts: Any) -> Tensor:
    """Logits of whole texts, [texts, outputs]."""
    said = classifier.logits(classifier.encode(texts))
    return torch.from_numpy(said.text if isinstance(said, WordLogits) else said)

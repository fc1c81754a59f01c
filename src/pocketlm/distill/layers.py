"""Distil a student on its teacher's hidden states and logits, at the same width.

TinyBERT (Jiao et al. 2020, https://arxiv.org/abs/1909.10351), section 3.1, eq. 8, 9 and 10.

Deviations: the student is cut out of the teacher and as wide as it, so hidden states are compared
without a learned projection; the intermediate and the prediction stage are one, with a weight for
each; teacher and student may read different pieces, aligned by characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.distill.losses import hidden_mse, logit_bernoulli_kl, logit_kl, logit_mse
from pocketlm.distill.teacher_outputs import Store
from pocketlm.distill.words import word_distance
from pocketlm.errors import RecipeError
from pocketlm.finetune import Targets, supervised, target_scale, targets_of, valid_score, word_loss
from pocketlm.models.load import Classifier
from pocketlm.stage import Context
from pocketlm.tokenization.encode import Encoded
from pocketlm.train import Loss, Precision, Settings, train


@dataclass(frozen=True)
class Distill:
    """Train the student to say what the teacher says.

    Args:
        hidden: Weight of the hidden-state loss, mean over the mapped layers.
        logits: Weight of the logit loss: KL in classification, squared error in regression; where words
            have tags or answers, KL for them, too, with the same weight.
        labels: Weight of the loss on the true labels.
        temperature: Of the logit loss.

    The rest is `pocketlm.train.Settings`.
    """

    hidden: float = 1.0
    logits: float = 1.0
    labels: float = 0.0
    temperature: float = 2.0
    epochs: int = 8
    learning_rate: float = 2e-4
    batch_size: int = 32
    micro_batch: int | None = None
    warmup: float = 0.1
    patience: int | None = None
    evaluations: int = 1
    precision: Precision = "auto"
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        weights = (self.hidden, self.logits, self.labels)
        if min(weights) < 0 or max(weights) == 0 or self.temperature <= 0:
            raise RecipeError(
                f"hidden={self.hidden}, logits={self.logits}, labels={self.labels}, "
                f"temperature={self.temperature}: "
                "weights must be 0 or more, one of them above 0, and the temperature above 0"
            )
        Settings.of(self)  # out of range is told at once

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the figure `distil` (valid score and curve).

        Raises:
            RecipeError: hidden states are to be compared, and none were kept.
        """
        data = artifact.parts["data"]
        if self.hidden and not artifact.figures["layer_map"]:
            raise RecipeError(
                f"hidden={self.hidden}, but the teacher's outputs hold no hidden states (layer_map: []); "
                "set hidden: 0, or map layers in the teacher_outputs stage"
            )
        student = Classifier.load(artifact.parts["student"], artifact.task, artifact.figures["max_length"])
        examples, valid = load_split(data, "train"), load_split(data, "valid")
        encoded, valid_encoded = student.encode(examples.texts), student.encode(valid.texts)
        targets = targets_of(examples, artifact.task)
        _, scale = target_scale(examples, artifact.task)
        curve = train(
            student.model,
            self.loss(student, encoded, Store.open(artifact.parts["teacher_outputs"]), targets, scale),
            encoded.lengths,
            Settings.of(self),
            lambda: valid_score(student, valid_encoded, valid),
            context.checkpoints,
            context.progress,
            "distil the student",
        )
        student.save(context.folder / "student")
        best = max(point.valid_score for point in curve)
        return artifact.with_part("student", context.folder / "student").with_figures(
            distil={"valid_score": best, "curve": [asdict(point) for point in curve]}
        )

    def loss(
        self, student: Classifier, encoded: Encoded, store: Store, targets: Targets, scale: float
    ) -> Loss:
        """The weighted sum of the terms, one loss an example; numbers are compared in units of `scale`."""
        teacher_logits = torch.from_numpy(store.logits.copy())
        task, regression = student.task, student.task.kind == "regression"
        logit_distance = logit_bernoulli_kl if task.kind == "multilabel" else logit_kl

        def loss(model: nn.Module, indices: Sequence[int]) -> Tensor:
            rows = list(indices)
            output = model(**student.inputs(encoded, rows), output_hidden_states=bool(self.hidden))
            wanted = teacher_logits[rows] / scale
            logits = output.logits.float() / scale if task.outputs else wanted
            total = torch.zeros(len(rows))
            if self.hidden:
                states, mask = store.hidden_of(rows)
                distances = [
                    hidden_mse(state.float(), states[:, :, layer], mask)
                    for layer, state in enumerate(output.hidden_states)
                ]
                total = total + self.hidden * torch.stack(distances).mean(dim=0)
            if self.logits and task.outputs:
                distance = (
                    logit_mse(logits, wanted)
                    if regression
                    else logit_distance(logits, wanted, self.temperature)
                )
                total = total + self.logits * distance
            if self.logits and store.words is not None:
                distance = word_distance(
                    student, output.word_logits, encoded, rows, store.words, self.temperature
                )
                total = total + self.logits * distance
            if self.labels and task.outputs:
                own = targets.text[rows] / scale if regression else targets.text[rows]
                total = total + self.labels * supervised(logits, own, task)
            if self.labels and task.word_outputs:
                of_words = word_loss(student, output.word_logits, encoded, rows, targets)
                total = total + self.labels * of_words
            return total

        return loss

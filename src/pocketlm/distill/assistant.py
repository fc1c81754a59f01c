"""A teacher assistant: a model between a large teacher and a small student.

Mirzadeh et al. 2020, Improved Knowledge Distillation via Teacher Assistant
(https://arxiv.org/abs/1902.03393), section 3: where the gap is too wide for the student to follow the
teacher, a model of a size between learns from the teacher first, and the student from it.

Deviations: the assistant is not drawn at random but made of the teacher's lowest layers, which have most of
what pre-training taught (Sajjad et al. 2023, On the Effect of Dropping Layers of Pre-trained Transformer
Models, https://arxiv.org/abs/2004.03844, section 3), or it is the recipe's `start`, a pre-trained encoder,
whole. So the student can be cut out of the assistant's weights and compare hidden states with it. Its word
embeddings stay as they are and its rate is low: what it knows of words that train lacks is what it has to
keep.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pocketlm.artifact import Artifact
from pocketlm.data.examples import MADE, load_texts, save_texts
from pocketlm.distill.layers import Along, Distill
from pocketlm.distill.teacher_outputs import TeacherOutputs
from pocketlm.errors import RecipeError, storage_errors
from pocketlm.finetune import head_factors
from pocketlm.models.load import student_of
from pocketlm.models.student import BuildStudent
from pocketlm.stage import Context
from pocketlm.train import Precision


@dataclass(frozen=True)
class Assistant:
    """Distil the teacher's logits into a model between, from which the student then is made.

    Args:
        layers: How many of the teacher's layers the assistant is made of, from the lowest; None takes the
            recipe's `start` in their place.
        epochs: Passes over the texts that the teacher labels.
        most: Made texts at most, beside all others; None takes them all. The student learns from what the
            assistant says of every text, which costs a fraction of asking the teacher.
        learning_rate: Peak of the schedule.
        head_rate: What the learning rate of the start's new head is multiplied by.
        freeze_embeddings: Leave the word embeddings as they were.
        temperature: Of both sides' class probabilities.
        batch_size: Examples a step.
        precision: See `pocketlm.train.Settings`.
        seed: Of the batches and the new head.
    """

    layers: int | None = None
    epochs: int = 2
    most: int | None = None
    learning_rate: float = 5e-5
    head_rate: float = 20.0
    freeze_embeddings: bool = True
    temperature: float = 2.0
    batch_size: int = 32
    precision: Precision = "auto"
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.distill()  # out of range is told at once
        if self.layers is not None and self.layers < 1:
            raise RecipeError(f"layers={self.layers} is out of range; it must be 1 or more, or null")
        if self.most is not None and self.most < 0:
            raise RecipeError(f"most={self.most} is out of range; it must be 0 or more, or null")
        if self.head_rate <= 0:
            raise RecipeError(f"head_rate={self.head_rate} is out of range; it must be above 0")

    def distill(self) -> Distill:
        """The stage that trains so."""
        names = ("epochs", "learning_rate", "temperature", "batch_size", "precision", "seed")
        return Distill(hidden=0.0, **{name: getattr(self, name) for name in names})

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part and the figure `assistant` (valid score and curve).

        Raises:
            RecipeError: there is neither a number of layers nor a `start`, or both, or the teacher has fewer.
        """
        if (self.layers is None) == ("start_source" not in artifact.parts):
            raise RecipeError(
                "an assistant is made of the recipe's `start` or of some of the teacher's `layers`, and here "
                f"there are {'neither' if self.layers is None else 'both'}; give one of them"
            )

        def inside(name: str) -> Context:
            folder, checkpoints = context.folder / name, context.checkpoints / name
            folder.mkdir(parents=True, exist_ok=True)
            return replace(context, folder=folder, checkpoints=checkpoints)

        kept = None if self.layers is None else tuple(range(self.layers))
        whole = BuildStudent(layers=kept, vocabulary=None, seed=self.seed)
        asked = self._few_made(artifact, inside("made"))
        asked = TeacherOutputs(states=(), precision=self.precision)(asked, inside("outputs"))
        asked = whole(asked, inside("start"))
        assistant = student_of(asked)
        assistant.model.get_input_embeddings().weight.requires_grad_(not self.freeze_embeddings)
        along = Along(factors=head_factors(assistant.model, self.head_rate if kept is None else 1.0))
        curves = self.distill().fit(assistant, asked, inside("distil"), "teach the assistant", along)
        assistant.save(context.folder / "assistant")
        return artifact.with_part("assistant", context.folder / "assistant").with_figures(
            assistant=curves, teacher_parameters=asked.figures["teacher_parameters"]
        )

    def _few_made(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with the first `most` of its made texts."""
        if self.most is None or "augmented" not in artifact.parts:
            return artifact
        made = load_texts(artifact.parts["augmented"] / MADE)
        with storage_errors(context.folder):
            save_texts(made[: self.most], context.folder / MADE)
        return artifact.with_part("augmented", context.folder)

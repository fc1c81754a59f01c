"""TinyBERT: distil every layer of a transformer, first on any text, then on the task.

Jiao et al. 2020, TinyBERT: Distilling BERT for Natural Language Understanding
(https://arxiv.org/abs/1909.10351), section 3.1, eq. 5 to 11, and section 3.2; the third part of the
method, data augmentation, is `pocketlm.data.augment`.

Where the paper and its published code differ, this follows the paper:

- W_h is a projection for each layer and W_e one of its own, without bias; the code has one with a bias
  for all of them, as a part of the student.
- A pair of positions counts in eq. 7 where both are text; the code sets scores of padding to 0 and
  counts them, so that a text's loss depends on the longest of its batch.
- Eq. 10 is a sum over classes; the code averages over them, which halves it for two.

Deviations from both:

- Eq. 10 is a Kullback-Leibler divergence: the cross-entropy less the teacher's own entropy, so of the
  same gradient, and 0 where student and teacher agree; it is multiplied by t².
- In regression, which the paper does not describe, logits are compared by their squared difference (the
  code takes the true labels there).
- Every learning rate warms up and decays linearly (the code keeps that of stage 1 constant); there is
  no dropout (see `docs/decisions/0003`).
- What is kept of a phase is its best evaluation, not its last.
- Teacher and student may read different pieces, aligned by characters.
- General distillation reads texts as they are, not packed to 128 pieces, in pairs, or masked.
- The projections learnt in general distillation are where those of the task start, as in the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_pool, load_split
from pocketlm.distill.inner import forget_inner, projections_of, train_inner
from pocketlm.distill.layers import logit_term
from pocketlm.distill.losses import state_mse
from pocketlm.distill.online import Online, load_corpus
from pocketlm.distill.pairs import (
    Pair,
    TeacherStates,
    attention_layers,
    check_heads,
    layer_map_of,
    pair_of,
    scores_distance,
)
from pocketlm.distill.states import depth_of
from pocketlm.distill.teacher_outputs import Store
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier, student_of, with_new_head, with_student
from pocketlm.stage import Context
from pocketlm.supervised import target_scale, valid_score
from pocketlm.tokenization.encode import Encoded
from pocketlm.train import Loss, Point, Precision, Settings, save_tensors, train


@dataclass(frozen=True)
class Weights:
    """λ of eq. 6, of each kind of layer loss; 0 leaves it out.

    Args:
        embedding: Of eq. 9.
        hidden: Of eq. 8.
        attention: Of eq. 7.
    """

    embedding: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0


@dataclass(frozen=True)
class Mapping:
    """g(m) of section 3.1, found in two models.

    Args:
        layer_map: Teacher's state for the student's embeddings and for each of its layers.
        pairs: Each layer of the student and the teacher's layer that ends in its state; empty where
            attention is not compared.
        projections: W_e, and W_h for each layer.
    """

    layer_map: tuple[int, ...]
    pairs: tuple[Pair, ...]
    projections: nn.ModuleList

    @property
    def states(self) -> list[int]:
        """The teacher's states that are compared, and those that its compared layers read."""
        return sorted({*self.layer_map, *(pair.teacher_state for pair in self.pairs)})


def mapping_of(
    student: nn.Module, teacher: nn.Module, layer_map: Sequence[int], attention: bool, width: int, seed: int
) -> Mapping:
    """Find in two models what is compared, with new projections to states of `width` features.

    Raises:
        RecipeError: attention scores are compared, and cannot be.
        TeacherError: they are, and the attention of a model of such a type is not known.
    """
    pairs: list[Pair] = []
    if attention:
        layers = attention_layers(layer_map)
        pairs = [pair_of(student, teacher, layer, other) for layer, other in enumerate(layers)]
        check_heads(pairs)
    return Mapping(tuple(layer_map), tuple(pairs), projections_of(student, len(layer_map), width, seed))


def transformer_loss(
    student: Classifier, encoded: Encoded, teacher: TeacherStates, mapping: Mapping, weights: Weights
) -> Loss:
    """Eq. 11 without the prediction layer: the sum of the embeddings' and all layers' losses.

    Args:
        student: The model to train.
        encoded: Training texts in its pieces.
        teacher: Tells its states of them.
        mapping: Which layer learns from which.
        weights: Of the kinds of loss.

    Returns:
        Maps (model, indices) to [batch].
    """

    def loss(model: nn.Module, indices: Sequence[int]) -> Tensor:
        rows = list(indices)
        base = cast(Any, model).base_model
        states = base(**student.inputs(encoded, rows), output_hidden_states=True).hidden_states
        said = teacher.states_of(rows, mapping.states)
        total = torch.zeros(len(rows))
        for m, state in enumerate(mapping.layer_map):
            weight = weights.hidden if m else weights.embedding
            if weight:
                projected = mapping.projections[m](states[m]).float()
                total = total + weight * state_mse(projected, said.values[state], said.mask)
        if weights.attention:
            for pair in mapping.pairs:
                total = total + weights.attention * scores_distance(pair, states, said)
        return total

    return loss


@dataclass(frozen=True)
class GeneralDistill:
    """General distillation (section 3.2): the pre-trained teacher into the student, on any text.

    The texts are those of `data.corpus` in the recipe, or else of the pool. The teacher is run in every
    batch and not stored.

    Args:
        embedding: Weight of eq. 9.
        hidden: Weight of eq. 8, in every layer.
        attention: Weight of eq. 7, in every layer.
        layer_map: g(m): teacher's state for the student's embeddings and for each of its layers, 0 being
            the teacher's embeddings and i its layer i - 1. None is (0, 3, 6, 9, 12) for 4 of 12, and
            the layers that a student was cut out of.
        epochs: Passes over the texts; the paper's are 3, over English Wikipedia, in batches of 256.

    The rest is `pocketlm.train.Settings`.
    """

    embedding: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0
    layer_map: tuple[int, ...] | None = None
    epochs: int = 3
    learning_rate: float = 1e-4
    batch_size: int = 32
    micro_batch: int | None = None
    warmup: float = 0.1
    evaluations: int = 1
    precision: Precision = "auto"
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_weights(embedding=self.embedding, hidden=self.hidden, attention=self.attention)
        Settings.of(self)  # out of range is told at once

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the part `projections` and the figure `tinybert_general`.

        Raises:
            RecipeError: the layers cannot be compared so.
            TeacherError: attention is compared, and a model's is not known.
            DataError: the corpus cannot be read.
        """
        task, max_length = artifact.task, artifact.figures["max_length"]
        student = student_of(artifact)
        torch.manual_seed(self.seed)
        teacher = with_new_head(artifact.parts["teacher_source"], task, max_length, dropout=0.0)
        texts = load_corpus(artifact)
        encoded = student.encode(texts)
        online = Online(teacher, teacher.encode(texts), encoded)
        layer_map = layer_map_of(
            self.layer_map, artifact.figures["shape"], depth_of(student.model), depth_of(teacher.model)
        )
        mapping = mapping_of(
            student.model, teacher.model, layer_map, self.attention > 0, online.width, self.seed
        )
        weights = Weights(self.embedding, self.hidden, self.attention)
        curve = train_inner(
            student.model,
            mapping.projections,
            transformer_loss(student, encoded, online, mapping, weights),
            encoded.lengths,
            Settings.of(self),
            context,
            "general distillation",
        )
        figures = {"texts": len(texts), "curve": [asdict(point) for point in curve]}
        distilled = with_student(artifact, student, context, tinybert_general=figures)
        save_tensors(mapping.projections.state_dict(), context.folder / "projections.safetensors")
        forget_inner(context)
        return distilled.with_part("projections", context.folder / "projections.safetensors")


@dataclass(frozen=True)
class TinyBert:
    """Task distillation (section 3.2): the layers in stage 1, then the prediction in stage 2.

    Stage 1 needs of `teacher_outputs` the mapped states and the inputs of their layers
    (`layer_inputs: true`), or `online: true` and no states at all.

    Args:
        embedding: Weight of eq. 9; 0 leaves it out, and so for the others.
        hidden: Weight of eq. 8, in every layer.
        attention: Weight of eq. 7, in every layer.
        prediction: Weight of eq. 10; 0 leaves stage 2 out.
        temperature: t of eq. 10.
        layer_map: As of `GeneralDistill`.
        online: Run the teacher in every batch of stage 1 rather than read its states: nothing is stored
            but logits, and an epoch takes longer.
        epochs_intermediate: Of stage 1; 0 leaves it out. The paper's are 10 for large tasks, 50 for CoLA.
        epochs_prediction: Of stage 2.
        learning_rate_intermediate: Peak of stage 1.
        learning_rate_prediction: Peak of stage 2; the paper chooses among 1e-5, 2e-5 and 3e-5.

    The rest is `pocketlm.train.Settings`; patience and evaluations are of stage 2.
    """

    embedding: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0
    prediction: float = 1.0
    temperature: float = 1.0
    layer_map: tuple[int, ...] | None = None
    online: bool = False
    epochs_intermediate: int = 20
    epochs_prediction: int = 3
    learning_rate_intermediate: float = 5e-5
    learning_rate_prediction: float = 3e-5
    batch_size: int = 32
    micro_batch: int | None = None
    warmup: float = 0.1
    patience: int | None = None
    evaluations: int = 1
    precision: Precision = "auto"
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_weights(
            embedding=self.embedding,
            hidden=self.hidden,
            attention=self.attention,
            prediction=self.prediction,
        )
        if self.temperature <= 0:
            raise RecipeError(f"temperature={self.temperature} is out of range; it must be above 0")
        if self.epochs_intermediate < 0:
            raise RecipeError(
                f"epochs_intermediate={self.epochs_intermediate} is out of range; it must be 0 or more"
            )
        if not self.intermediate and not self.prediction:
            raise RecipeError(
                "epochs_intermediate=0 and prediction=0.0 leave nothing to train; give one of them more"
            )
        self._settings(max(self.epochs_intermediate, 1), self.learning_rate_intermediate)
        self._settings(self.epochs_prediction, self.learning_rate_prediction)

    @property
    def intermediate(self) -> bool:
        """True where there is a stage 1."""
        return self.epochs_intermediate > 0 and max(self.embedding, self.hidden, self.attention) > 0

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the figure `distil` (valid score and both curves).

        Raises:
            RecipeError: the layers cannot be compared so, or the states were not kept.
            TeacherError: attention is compared, and a model's is not known.
        """
        data, task = artifact.parts["data"], artifact.task
        student = student_of(artifact)
        pool, valid = load_pool(artifact), load_split(data, "valid")
        encoded, valid_encoded = student.encode(pool.texts), student.encode(valid.texts)
        store = Store.open(artifact.parts["teacher_outputs"])
        inner: list[Point] = []
        if self.intermediate:
            loss, projections = self.stage_1(artifact, student, encoded, store)
            settings = self._settings(self.epochs_intermediate, self.learning_rate_intermediate)
            inner = train_inner(
                student.model, projections, loss, encoded.lengths, settings, context, "distil the layers"
            )
        curve: list[Point] = []
        if self.prediction:
            _, scale = target_scale(load_split(data, "train"), task)
            curve = train(
                student.model,
                self.stage_2(student, encoded, store, scale),
                encoded.lengths,
                self._settings(
                    self.epochs_prediction, self.learning_rate_prediction, self.patience, self.evaluations
                ),
                lambda: valid_score(student, valid_encoded, valid),
                context.checkpoints,
                context.progress,
                "distil the prediction",
            )
        reached = valid_score(student, valid_encoded, valid)
        figures = {
            "valid_score": reached,
            "curve": [asdict(point) for point in curve],
            "inner_curve": [asdict(point) for point in inner],
        }
        distilled = with_student(artifact, student, context, distil=figures)
        forget_inner(context)
        return distilled

    def stage_1(
        self, artifact: Artifact, student: Classifier, encoded: Encoded, store: Store
    ) -> tuple[Loss, nn.ModuleList]:
        """The loss of the layers, and the projections that are learnt along."""
        teacher = Classifier.load(artifact.master, artifact.task, student.max_length)
        layer_map = layer_map_of(
            self.layer_map, artifact.figures["shape"], depth_of(student.model), depth_of(teacher.model)
        )
        states: TeacherStates = store
        if self.online:
            states = Online(teacher, teacher.encode(load_pool(artifact).texts), encoded)
        mapping = mapping_of(
            student.model, teacher.model, layer_map, self.attention > 0, states.width, self.seed
        )
        if not self.online:
            store.need(mapping.states, "stage 1 of tinybert")
        if "projections" in artifact.parts:
            take_projections(mapping.projections, artifact.parts["projections"])
        weights = Weights(self.embedding, self.hidden, self.attention)
        return transformer_loss(student, encoded, states, mapping, weights), mapping.projections

    def stage_2(self, student: Classifier, encoded: Encoded, store: Store, scale: float) -> Loss:
        """Eq. 10; numbers are compared in units of `scale`."""

        def loss(model: nn.Module, indices: Sequence[int]) -> Tensor:
            rows = list(indices)
            output = model(**student.inputs(encoded, rows))
            term = logit_term(student, output, encoded, rows, store, scale, "kl", self.temperature)
            return self.prediction * term

        return loss

    def _settings(
        self, epochs: int, learning_rate: float, patience: int | None = None, evaluations: int = 1
    ) -> Settings:
        return Settings(
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=self.batch_size,
            micro_batch=self.micro_batch,
            warmup=self.warmup,
            patience=patience,
            evaluations=evaluations,
            seed=self.seed,
            precision=self.precision,
        )


def take_projections(projections: nn.ModuleList, path: Path) -> bool:
    """Start at the projections that general distillation learnt, where they are of the same shapes.

    Returns:
        True where they are.
    """
    found = load_file(path)
    own = projections.state_dict()
    fits = {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in own.items()
    }
    if fits:
        projections.load_state_dict(found)
    return fits


def _check_weights(**weights: float) -> None:
    if min(weights.values()) < 0 or max(weights.values()) == 0:
        told = ", ".join(f"{name}={value}" for name, value in weights.items())
        raise RecipeError(f"{told}: weights must be 0 or more, one of them above 0")

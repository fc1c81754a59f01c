"""MiniLMv2: distil the self-attention relations of one layer, on any text.

Wang et al. 2021, MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
Transformers (https://arxiv.org/abs/2012.15828), section 3, eq. 4 to 6. Only the last layer of the
student is told anything, so it may have any depth, width and number of heads; fine-tuning or `distill`
brings it to the task. The relations themselves are `pocketlm.distill.losses.relation_kl`, and within
`distill` they are a term beside others.

Deviations: where the published relation heads (48 of base-size teachers, 64 of large ones) do not
divide both widths, the next smaller number that does is taken; teacher and student may read different
pieces, aligned by characters, and a relation is one between the student's positions; texts are read as
they are and not packed to 512 pieces; the learning rate decays from 6e-4 as published, over far fewer
steps; no dropout (see `docs/decisions/0003`). No code of the distillation was published to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pocketlm.artifact import Artifact
from pocketlm.distill.inner import forget_inner, train_inner
from pocketlm.distill.online import Online, load_corpus
from pocketlm.distill.pairs import Pair, TeacherStates, pair_of, relation_heads_of, relations_distance
from pocketlm.distill.states import depth_of
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier, student_of, with_new_head, with_student
from pocketlm.stage import Context
from pocketlm.tokenization.encode import Encoded
from pocketlm.train import Loss, Precision, Settings


def relation_loss(
    student: Classifier,
    encoded: Encoded,
    teacher: TeacherStates,
    pair: Pair,
    heads: int,
    weights: Sequence[float],
) -> Loss:
    """Eq. 4: the weighted sum of the relation losses of queries, keys and values.

    Args:
        student: The model to train.
        encoded: Training texts in its pieces.
        teacher: Tells its states of them.
        pair: The student's last layer and the teacher's chosen one.
        heads: Relation heads, A_r.
        weights: α of eq. 4, of queries, keys and values.

    Returns:
        Maps (model, indices) to [batch].
    """

    def loss(model: nn.Module, indices: Sequence[int]) -> Tensor:
        rows = list(indices)
        base = cast(Any, model).base_model
        states = base(**student.inputs(encoded, rows), output_hidden_states=True).hidden_states
        said = teacher.states_of(rows, [pair.teacher_state])
        return relations_distance(pair, states, said, heads, weights)

    return loss


@dataclass(frozen=True)
class Relations:
    """Relation distillation of the pre-trained teacher into the student, on any text.

    The texts are those of `data.corpus` in the recipe, or else of the pool. The teacher is run in every
    batch and not stored.

    Args:
        queries: Weight of the relations between queries.
        keys: Between keys.
        values: Between values.
        teacher_layer: Layer of the teacher to learn from, 0 the first; None is the last, which the paper
            takes of base-size teachers. Of large ones it takes the 21st of 24, which is 20 here.
        relation_heads: None is the most up to 48 that divide both widths.
        epochs: Passes over the texts.

    The rest is `pocketlm.train.Settings`.
    """

    queries: float = 1.0
    keys: float = 1.0
    values: float = 1.0
    teacher_layer: int | None = None
    relation_heads: int | None = None
    epochs: int = 3
    learning_rate: float = 6e-4
    batch_size: int = 256
    micro_batch: int | None = 32
    warmup: float = 0.01
    evaluations: int = 1
    precision: Precision = "auto"
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        weights = (self.queries, self.keys, self.values)
        if min(weights) < 0 or max(weights) == 0:
            raise RecipeError(
                f"queries={self.queries}, keys={self.keys}, values={self.values}: "
                "weights must be 0 or more, one of them above 0"
            )
        Settings.of(self)  # out of range is told at once

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the figure `relations` (texts, relation heads and curve).

        Raises:
            RecipeError: the teacher has no such layer, or the relation heads do not divide a width.
            TeacherError: the attention of one of the models is not known.
            DataError: the corpus cannot be read.
        """
        task, max_length = artifact.task, artifact.figures["max_length"]
        student = student_of(artifact)
        torch.manual_seed(self.seed)
        teacher = with_new_head(artifact.parts["teacher_source"], task, max_length, dropout=0.0)
        depth = depth_of(teacher.model)
        layer = depth - 1 if self.teacher_layer is None else self.teacher_layer
        if not 0 <= layer < depth:
            raise RecipeError(
                f"teacher_layer={layer} is out of range; the teacher's layers are 0 to {depth - 1}"
            )
        heads = relation_heads_of(self.relation_heads, student.model, teacher.model)
        pair = pair_of(student.model, teacher.model, depth_of(student.model) - 1, layer)
        texts = load_corpus(artifact)
        encoded = student.encode(texts)
        online = Online(teacher, teacher.encode(texts), encoded)
        curve = train_inner(
            student.model,
            nn.ModuleList(),
            relation_loss(student, encoded, online, pair, heads, (self.queries, self.keys, self.values)),
            encoded.lengths,
            Settings.of(self),
            context,
            "distil relations",
        )
        figures = {
            "texts": len(texts),
            "relation_heads": heads,
            "curve": [asdict(point) for point in curve],
        }
        distilled = with_student(artifact, student, context, relations=figures)
        forget_inner(context)
        return distilled

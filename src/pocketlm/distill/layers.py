"""Distil a student of any width, depth and vocabulary on its teacher's states, relations and logits.

TinyBERT (Jiao et al. 2020, https://arxiv.org/abs/1909.10351), section 3.1, eq. 7 to 10; MiniLMv2 (Wang
et al. 2021, https://arxiv.org/abs/2012.15828), eq. 5 and 6; DistilBERT (Sanh et al. 2019,
https://arxiv.org/abs/1910.01108), section 3; Hinton et al. 2015 (https://arxiv.org/abs/1503.02531).

Deviations: every term is a mean over its layers, and hidden states are compared relative to the
teacher's length, so that one weight fits all depths and scales; learnt projections start at the least
squares fit, and there are none between states of one width; all terms are learnt together unless
`inner_epochs` puts those inside of the model first; teacher and student may read different pieces,
aligned by characters. The papers' own methods are in `tinybert.py` and `relations.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_pool, load_split
from pocketlm.distill.inner import fit_projections, forget_inner, projections_of, train_inner
from pocketlm.distill.losses import LogitLoss, cosine, hidden_mse, logit_distance
from pocketlm.distill.pairs import (
    Pair,
    attention_layers,
    check_heads,
    layer_map_of,
    pair_of,
    relation_heads_of,
    relations_distance,
    scores_distance,
)
from pocketlm.distill.states import depth_of, width_of
from pocketlm.distill.teacher_outputs import Store
from pocketlm.distill.words import word_distance
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier, student_of, with_student
from pocketlm.stage import Context
from pocketlm.supervised import Targets, supervised, target_scale, targets_of, valid_score, word_loss
from pocketlm.tokenization.encode import Encoded
from pocketlm.train import Loss, Point, Precision, Settings, train


@dataclass(frozen=True)
class Along:
    """What a stage that prunes does while the student is trained.

    Args:
        each_step: See `pocketlm.train.train`, like the next two.
        kept_from: See there.
        factors: See there.
        penalty: One number, added to the loss of every example.
    """

    each_step: Callable[[int, int], None] | None = None
    kept_from: float = 0.0
    factors: Mapping[nn.Parameter, float] = field(default_factory=dict[nn.Parameter, float])
    penalty: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Distill:
    """Train the student to say what the teacher says. A weight of 0 leaves its term out.

    Args:
        hidden: Weight of the hidden states' relative squared distance, mean over the mapped states.
        cosine: Weight of the angle between last hidden states.
        attention: Weight of the attention scores' squared distance, mean over the mapped layers.
        relations: Weight of the relations of queries, keys and values, mean over the three.
        logits: Weight of the logit loss, of texts and of their words.
        labels: Weight of the loss on the true labels; only texts that have one count in it.
        logit_loss: `kl` of softened probabilities, or `mse`; numbers always take the latter, words the first.
        temperature: Of `kl`.
        layer_map: Teacher's state for the student's embeddings and for each of its layers, 0 being the
            teacher's embeddings and i its layer i - 1. None takes every kept layer as its own teacher,
            and spreads evenly where the student was not cut out of the teacher.
        relation_layers: Layer of the student and layer of the teacher whose relations are compared;
            None is the last of each.
        relation_heads: Relation heads; None is the most up to 48 that divide both widths.
        project: Learn a linear map in front of every comparison of states. None does where the widths
            differ.
        inner_epochs: Epochs on the inner terms alone (hidden, cosine, attention, relations), before
            `epochs` on all.

    The rest is `pocketlm.train.Settings`.
    """

    hidden: float = 1.0
    cosine: float = 0.0
    attention: float = 0.0
    relations: float = 0.0
    logits: float = 1.0
    labels: float = 0.0
    logit_loss: LogitLoss = "kl"
    temperature: float = 2.0
    layer_map: tuple[int, ...] | None = None
    relation_layers: tuple[int, int] | None = None
    relation_heads: int | None = None
    project: bool | None = None
    inner_epochs: int = 0
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
        weights = (self.hidden, self.cosine, self.attention, self.relations, self.logits, self.labels)
        if min(weights) < 0 or max(weights) == 0 or self.temperature <= 0:
            raise RecipeError(
                f"hidden={self.hidden}, cosine={self.cosine}, attention={self.attention}, "
                f"relations={self.relations}, logits={self.logits}, labels={self.labels}, "
                f"temperature={self.temperature}: "
                "weights must be 0 or more, one of them above 0, and the temperature above 0"
            )
        if self.inner_epochs < 0 or (self.inner_epochs and not self.inner):
            raise RecipeError(
                f"inner_epochs={self.inner_epochs} is out of range; allowed: 0, or more with a weight "
                "above 0 for hidden, cosine, attention or relations"
            )
        Settings.of(self)  # out of range is told at once

    @property
    def inner(self) -> bool:
        """True where something inside of the teacher is compared."""
        return max(self.hidden, self.cosine, self.attention, self.relations) > 0

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the figure `distil` (valid score and curves).

        Raises:
            RecipeError: a term needs states that were not kept, or does not fit the two models.
            TeacherError: a term needs attention, and that of the model's type is not known.
        """
        student = student_of(artifact)
        curves = self.fit(student, artifact, context, "distil the student")
        distilled = with_student(artifact, student, context, distil=curves)
        forget_inner(context)
        return distilled

    def fit(
        self,
        student: Classifier,
        artifact: Artifact,
        context: Context,
        description: str,
        along: Along | None = None,
    ) -> dict[str, Any]:
        """Train a student in place.

        Args:
            student: It reads the pieces of the artifact's `teacher_outputs`.
            artifact: With the parts `data` and `teacher_outputs`.
            context: Where checkpoints live, and the progress.
            description: What the bar says.
            along: What else is done meanwhile.

        Returns:
            `valid_score`, the best one, `curve` and, with epochs for the inside, `inner_curve`.
        """
        data, task, along = artifact.parts["data"], artifact.task, along or Along()
        pool, valid = load_pool(artifact), load_split(data, "valid")
        encoded, valid_encoded = student.encode(pool.texts), student.encode(valid.texts)
        train_split = load_split(data, "train")
        _, scale = target_scale(train_split, task)
        store = Store.open(artifact.parts["teacher_outputs"])
        terms = self.terms(artifact, student, encoded, store)
        targets, settings = targets_of(train_split, task), Settings.of(self)
        inner: list[Point] = []
        if self.inner_epochs:
            alone = replace(self, logits=0.0, labels=0.0)
            inner = train_inner(
                student.model,
                terms.projections,
                alone.loss(student, encoded, store, targets, scale, terms),
                encoded.lengths,
                replace(settings, epochs=self.inner_epochs, patience=None, evaluations=1),
                context,
                "distil the inside",
            )
        loss = self.loss(student, encoded, store, targets, scale, terms)
        curve = train(
            student.model,
            loss if along.penalty is None else _with(loss, along.penalty),
            encoded.lengths,
            settings,
            lambda: valid_score(student, valid_encoded, valid),
            context.checkpoints,
            context.progress,
            description,
            terms.projections,
            along.factors,
            along.each_step,
            along.kept_from,
        )
        first = along.kept_from * settings.epochs * -(-len(encoded) // settings.batch_size)
        counted = [point.valid_score for point in curve if point.step >= first]
        curves: dict[str, Any] = {"valid_score": max(counted), "curve": [asdict(point) for point in curve]}
        if inner:
            curves["inner_curve"] = [asdict(point) for point in inner]
        return curves

    def terms(self, artifact: Artifact, student: Classifier, encoded: Encoded, store: Store) -> Terms:
        """What the inner terms compare, found in the two models and checked against the store.

        Raises:
            RecipeError: a term needs states that were not kept, or does not fit the two models.
            TeacherError: a term needs attention, and that of the model's type is not known.
        """
        if not self.inner:
            return Terms()
        layers, depth, width = depth_of(student.model), store.depth, width_of(student.model)
        layer_map = layer_map_of(self.layer_map, artifact.figures["shape"], layers, depth)
        terms = Terms(layer_map=layer_map)
        if self.hidden:
            store.need(layer_map, f"hidden={self.hidden}")
        if self.cosine:
            store.need(layer_map[-1:], f"cosine={self.cosine}")
        if self.attention or self.relations:
            # All of the teacher but the attention that is used is let go again.
            teacher = Classifier.load(artifact.master, artifact.task, student.max_length).model
            terms = self._attention_terms(terms, student.model, teacher, store)
        if self.hidden or self.cosine:
            project = width != store.width if self.project is None else self.project
            if not project and width != store.width:
                raise RecipeError(
                    f"project=False, but the student's states have {width} features and the teacher's, as "
                    f"they were kept, {store.width}; set project: null"
                )
            if project:
                # Only the last state takes part where hidden states do not.
                compared = layer_map if self.hidden else layer_map[-1:]
                terms.projections.extend(projections_of(student.model, len(compared), store.width, self.seed))
                fit_projections(terms.projections, student, encoded, store, compared)
        return terms

    def _attention_terms(self, terms: Terms, student: nn.Module, teacher: nn.Module, store: Store) -> Terms:
        """The terms with the layers whose attention scores and relations are compared."""
        layers, depth = depth_of(student), store.depth
        if self.attention:
            pairs = [
                pair_of(student, teacher, layer, other)
                for layer, other in enumerate(attention_layers(terms.layer_map))
            ]
            check_heads(pairs)
            store.need([pair.teacher_state for pair in pairs], f"attention={self.attention}")
            terms = replace(terms, pairs=tuple(pairs))
        if self.relations:
            ours, theirs = self.relation_layers or (layers - 1, depth - 1)
            if not 0 <= ours < layers or not 0 <= theirs < depth:
                raise RecipeError(
                    f"relation_layers={[ours, theirs]} does not fit: give a layer of the student, 0 to "
                    f"{layers - 1}, and one of the teacher, 0 to {depth - 1}"
                )
            related = pair_of(student, teacher, ours, theirs)
            store.need([related.teacher_state], f"relations={self.relations}")
            heads = relation_heads_of(self.relation_heads, student, teacher)
            terms = replace(terms, related=related, relation_heads=heads)
        return terms

    def loss(
        self,
        student: Classifier,
        encoded: Encoded,
        store: Store,
        targets: Targets,
        scale: float,
        terms: Terms,
    ) -> Loss:
        """The weighted sum of the terms, one loss an example; numbers are compared in units of `scale`."""
        needed = self._needed(terms)

        def loss(model: nn.Module, indices: Sequence[int]) -> Tensor:
            rows = list(indices)
            output = model(**student.inputs(encoded, rows), output_hidden_states=bool(needed))
            total = torch.zeros(len(rows))
            if needed:
                said = store.states_of(rows, needed)
                states, mask = output.hidden_states, said.mask
                if self.hidden:
                    distances = [
                        hidden_mse(terms.projected(states, place), said.values[other], mask)
                        for place, other in enumerate(terms.layer_map)
                    ]
                    total = total + self.hidden * torch.stack(distances).mean(dim=0)
                if self.cosine:
                    last = terms.projected(states, len(terms.layer_map) - 1)
                    total = total + self.cosine * cosine(last, said.values[terms.layer_map[-1]], mask)
                if self.attention:
                    distances = [scores_distance(pair, states, said) for pair in terms.pairs]
                    total = total + self.attention * torch.stack(distances).mean(dim=0)
                if self.relations and terms.related:
                    distance = relations_distance(terms.related, states, said, terms.relation_heads)
                    total = total + self.relations / 3 * distance
            if self.logits:
                distance = logit_term(
                    student, output, encoded, rows, store, scale, self.logit_loss, self.temperature
                )
                total = total + self.logits * distance
            if self.labels:
                total = total + self.labels * label_term(student, output, encoded, rows, targets, scale)
            return total

        return loss

    def _needed(self, terms: Terms) -> list[int]:
        """The teacher's states that a batch is asked for."""
        states = [*(terms.layer_map if self.hidden else ()), *(terms.layer_map[-1:] if self.cosine else ())]
        states += [pair.teacher_state for pair in terms.pairs if self.attention]
        states += [terms.related.teacher_state] if self.relations and terms.related else []
        return sorted({*states})


@dataclass(frozen=True)
class Terms:
    """What the inner terms compare.

    Args:
        layer_map: Teacher's state for every state of the student.
        pairs: Layers whose attention scores are compared.
        related: Layers whose relations are.
        relation_heads: Of those.
        projections: For the states that are compared, the last ones of the student; none where
            states are compared as they are.
    """

    layer_map: tuple[int, ...] = ()
    pairs: tuple[Pair, ...] = ()
    related: Pair | None = None
    relation_heads: int = 1
    projections: nn.ModuleList = field(default_factory=nn.ModuleList)

    def projected(self, states: Sequence[Tensor], place: int) -> Tensor:
        """The student's state `place` as it is compared, [batch, length, teacher's width]."""
        if not len(self.projections):
            return states[place].float()
        return self.projections[place - len(self.layer_map)](states[place]).float()


def logit_term(
    student: Classifier,
    output: Any,
    encoded: Encoded,
    rows: list[int],
    store: Store,
    scale: float,
    loss: LogitLoss,
    temperature: float,
) -> Tensor:
    """Distance of a student's logits, of texts and of their words, from the stored ones, [batch].

    Args:
        student: Decides which logits there are.
        output: Of its model.
        encoded: The pool in its pieces.
        rows: The examples.
        store: Of the teacher.
        scale: Unit of numbers.
        loss: Which distance.
        temperature: Of `kl`.
    """
    total = torch.zeros(len(rows))
    if student.task.outputs:
        wanted, said = store.logits_of(rows) / scale, output.logits.float() / scale
        total = total + logit_distance(said, wanted, loss, temperature, student.task.kind)
    if store.words is not None:
        total = total + word_distance(student, output.word_logits, encoded, rows, store.words, temperature)
    return total


def label_term(
    student: Classifier, output: Any, encoded: Encoded, rows: list[int], targets: Targets, scale: float
) -> Tensor:
    """Loss on the true labels, [batch]; 0 for texts of the pool without one.

    Args:
        student: Decides which loss.
        output: Of its model.
        encoded: The pool in its pieces.
        rows: The examples.
        targets: Of the first texts of the pool.
        scale: Unit of numbers.
    """
    task = student.task
    places = [place for place, row in enumerate(rows) if row < len(targets.text)]
    total, kept = torch.zeros(len(rows)), [rows[place] for place in places]
    if not places:
        return total
    losses = torch.zeros(len(places))
    if task.outputs:
        losses = losses + supervised(output.logits.float()[places] / scale, targets.text[kept] / scale, task)
    if task.word_outputs:
        losses = losses + word_loss(student, output.word_logits[places], encoded, kept, targets)
    return total.index_put((torch.tensor(places),), losses)


def _with(loss: Loss, penalty: Callable[[], Tensor]) -> Loss:
    def both(model: nn.Module, indices: Sequence[int]) -> Tensor:
        return loss(model, indices) + penalty()

    return both

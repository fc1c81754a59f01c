"""Transfer learning: a pre-trained encoder becomes the teacher of the user's task.

Devlin et al. 2019, BERT (https://arxiv.org/abs/1810.04805), section 4.1 and appendix A.3: a fresh
head over the pooled first position, all weights trained at a small learning rate for a few epochs.

Deviations: the best epoch on valid is kept rather than the last; word embeddings may stay as they
were pre-trained (`freeze_embeddings`), which saves time and hardly moves the score on little data;
there is no dropout (see `docs/decisions/0003`). `pocketlm.supervised` has the losses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # pyright: ignore[reportUnknownVariableType]
from torch import nn
from transformers import PreTrainedModel

from pocketlm.artifact import Artifact
from pocketlm.data.examples import Examples, load_split
from pocketlm.errors import RecipeError, TeacherError
from pocketlm.models.load import Classifier, head_of, output_layer, with_new_head
from pocketlm.models.lora import add_lora, merge_lora
from pocketlm.stage import Context
from pocketlm.supervised import fold_scale, label_loss, target_scale, targets_of, valid_score
from pocketlm.tasks.metrics import multi_hot, score
from pocketlm.tasks.task import OUTSIDE, Task
from pocketlm.tasks.words import MISSING
from pocketlm.train import Point, Precision, Settings, train

Mode = Literal["auto", "always", "never"]
Indices = NDArray[np.intp]
SWAPPED_MARGIN = 0.1
SHORTEST = 8
# What suits a text's label leaves tags half learned (docs/experiments/0005).
USUAL: dict[str, Any] = {"epochs": 3, "learning_rate": 5e-5}
USUAL_FOR_TAGS: dict[str, Any] = {"epochs": 6, "learning_rate": 2e-4}


@dataclass(frozen=True)
class FineTune:
    """Fine-tune the teacher, or take it as it is where its head already fits the task.

    Args:
        mode: `auto` trains only a teacher without a head for this task; `always` replaces the head it
            has; `never` fails where it has none.
        epochs: None is 3, and 6 where words have tags.
        learning_rate: None is 5e-5, and 2e-4 where words have tags.
        freeze_embeddings: Leave the word embeddings as they were pre-trained.
        dropout: Of hidden states, attention and head while training.
        head_rate: What the learning rate of the new head is multiplied by, which starts from nothing: with
            many labels it lags far behind the encoder otherwise (Howard and Ruder 2018,
            https://arxiv.org/abs/1801.06146, section 3.2, have a rate for every layer).
        lora_rank: Train only low-rank changes of the encoder's matrices, of this rank, and the head (see
            `pocketlm.models.lora`): for little data. They need a learning rate some ten times as high. None
            trains all weights.

    The rest is `pocketlm.train.Settings`; `max_length` is in pieces, and
    at most what the teacher has positions for.
    """

    mode: Mode = "auto"
    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int = 32
    micro_batch: int | None = None
    warmup: float = 0.1
    patience: int | None = None
    evaluations: int = 1
    max_length: int = 128
    freeze_embeddings: bool = True
    dropout: float = 0.0
    head_rate: float = 20.0
    lora_rank: int | None = None
    precision: Precision = "auto"
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.settings(words=False)  # out of range is told at once
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout={self.dropout} is out of range; allowed: 0 up to below 1")
        if self.head_rate <= 0:
            raise RecipeError(f"head_rate={self.head_rate} is out of range; it must be above 0")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise RecipeError(f"lora_rank={self.lora_rank} is out of range; allowed: 1 or more, or null")
        if self.max_length < SHORTEST:
            raise RecipeError(
                f"max_length={self.max_length} leaves no room for text; allowed: {SHORTEST} or more"
            )

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part `teacher` and the figures `teacher` (valid score, curve, whether trained).

        Raises:
            TeacherError: the teacher's head does not fit, or it is no better than the majority.
        """
        task, source = artifact.task, artifact.parts["teacher_source"]
        valid = load_split(artifact.parts["data"], "valid")
        order = fitting_head(head_of(source, task), task, self.mode)
        if order is not None:
            teacher = reordered(Classifier.load(source, task, self.max_length), order)
            curve = []
        else:
            teacher, curve = self._train(artifact, context, valid)
        reached = valid_score(teacher, teacher.encode(valid.texts), valid)
        check_teacher(teacher, valid, reached, order, trained=order is None)
        folder = context.folder / "teacher"
        teacher.save(folder)
        figures = {
            "valid_score": reached,
            "trained": order is None,
            "curve": [asdict(point) for point in curve],
        }
        if task.word_outputs:
            figures["cut_off"] = self._cut_off(teacher, artifact, context)
        return artifact.with_part("teacher", folder).with_figures(
            teacher=figures, max_length=teacher.max_length
        )

    def _train(self, artifact: Artifact, context: Context, valid: Examples) -> tuple[Classifier, list[Point]]:
        examples = load_split(artifact.parts["data"], "train")
        teacher = self.fresh(artifact.parts["teacher_source"], artifact.task)
        return teacher, self.fit(teacher, examples, valid, context, "fine-tune the teacher")

    def fresh(self, source: Path, task: Task) -> Classifier:
        """What training starts from: a pre-trained encoder under a new head, the same for the same seed."""
        torch.manual_seed(self.seed)
        return with_new_head(source, task, self.max_length, self.dropout)

    def fit(
        self,
        teacher: Classifier,
        examples: Examples,
        valid: Examples,
        context: Context,
        description: str,
        each_step: Callable[[int, int], None] | None = None,
    ) -> list[Point]:
        """Train on true labels, in place, and keep the best evaluation on valid.

        Args:
            teacher: As `fresh` makes it.
            examples: To train on.
            valid: To choose by.
            context: Where checkpoints live, and the progress.
            description: What the bar says.
            each_step: See `pocketlm.train.train`.

        Returns:
            The learning curve.
        """
        task = teacher.task
        adapted = None if self.lora_rank is None else add_lora(teacher.model, self.lora_rank)
        if self.freeze_embeddings:
            teacher.model.get_input_embeddings().weight.requires_grad_(False)
        encoded, valid_encoded = teacher.encode(examples.texts), teacher.encode(valid.texts)
        mean, scale = target_scale(examples, task)
        curve = train(
            teacher.model,
            label_loss(teacher, encoded, targets_of(examples, task, mean, scale)),
            encoded.lengths,
            self.settings(words=bool(task.tags)),
            lambda: valid_score(teacher, valid_encoded, valid),
            context.checkpoints,
            context.progress,
            description,
            # That of low-rank changes is fit for a head as it is.
            factors=head_factors(teacher.model, self.head_rate if self.lora_rank is None else 1.0),
            each_step=each_step,
        )
        if adapted is not None:
            merge_lora(adapted)
        if task.kind == "regression":
            fold_scale(teacher.model, mean, scale)
        return curve

    def settings(self, words: bool) -> Settings:
        """With the usual values for whole texts, or for tags of words, where none are given."""
        usual = USUAL_FOR_TAGS if words else USUAL
        missing = {name: value for name, value in usual.items() if getattr(self, name) is None}
        return Settings.of(replace(self, **missing)) if missing else Settings.of(self)

    def _cut_off(self, teacher: Classifier, artifact: Artifact, context: Context) -> int:
        """How many training examples lose words to the cut at `max_length`; of questions, their answer."""
        examples = load_split(artifact.parts["data"], "train")
        places: list[list[int]] = teacher.encode(examples.texts).words
        what = "words"
        if artifact.task.kind == "qa":
            what = "the answer"
            ends: list[tuple[int, int]] = [(label["start"], label["end"]) for label in examples.labels]
            places = [[own[start], own[end]] for own, (start, end) in zip(places, ends, strict=True)]
        count = sum(MISSING in own for own in places)
        if count:
            context.progress.say(
                f"train: max_length={teacher.max_length} cuts off {what} in {count} of {len(examples)} rows, "
                "which teach only what is left"
            )
        return count


def head_factors(model: PreTrainedModel, factor: float) -> dict[nn.Parameter, float]:
    """A factor of the learning rate for the head's parameters; see `pocketlm.train.train`."""
    encoder = {*model.base_model.parameters()}
    return {parameter: factor for parameter in model.parameters() if parameter not in encoder}


def fitting_head(head: Sequence[str] | None, task: Task, mode: str) -> tuple[int, ...] | None:
    """Teacher's output for every output of the task; None where a new head is to be trained.

    Names are compared as they are, then without case. A head named `LABEL_0 …`, or labels that are the
    numbers 0 … n-1, are taken in their order: `check_teacher` finds it out if that is wrong.

    Raises:
        TeacherError: the head has other labels than the data, or there is none and `mode` is `never`.
    """
    if head is None and mode == "never":
        raise TeacherError(
            "the teacher has no classification head, and fine-tuning is switched off; use mode: auto"
        )
    if head is None or mode == "always":
        return None
    advice = "give data of the teacher's own labels, or train a new head with --fine-tune always"
    if len(head) != (len(task.names) or task.outputs):
        raise TeacherError(
            f"the teacher's head has {len(head)} outputs ({_some(head)}), but the task has "
            f"{len(task.names) or 1} ({_some(task.names) if task.names else 'one number'}); {advice}"
        )
    if task.kind == "regression":
        return (0,)
    for spelled in (str, str.casefold):
        names = {spelled(name): index for index, name in enumerate(head)}
        if len(names) == len(head) and {spelled(label) for label in task.names} == set(names):
            return tuple(names[spelled(label)] for label in task.names)
    identity = tuple(range(len(head)))
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(head))
    if unnamed or list(task.names) == [str(index) for index in identity]:
        return identity
    raise TeacherError(
        f"the teacher's labels are {_some(head)}, but the data's are {_some(task.names)}; {advice}"
    )


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


def reordered(teacher: Classifier, order: Sequence[int]) -> Classifier:
    """The same teacher with its outputs in the order of the task's labels."""
    layer = output_layer(teacher.model)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[list(order)].clone())
        layer.bias.copy_(layer.bias[list(order)].clone())
    return teacher


def check_teacher(
    teacher: Classifier,
    valid: Examples,
    reached: float,
    order: Sequence[int] | None = None,
    trained: bool = False,
) -> None:
    """Refuse a teacher that has nothing to teach.

    Args:
        teacher: With its outputs in the order of the task's labels.
        valid: What it is asked.
        reached: Its score on them.
        order: Its own output behind every output, as `fitting_head` found it; None where they are the same.
        trained: True where the head was trained just now, so that its labels cannot be swapped.

    Raises:
        TeacherError: no better than always saying the commonest label (in regression, no correlation at
            all; where words have tags or answers, not one right), or the labels are in another order.
    """
    task = teacher.task
    if task.kind in ("multilabel", "tokens", "joint", "qa"):
        _check_words(task, valid, reached)
        return
    if task.kind == "regression":
        if reached <= 0:
            raise TeacherError(
                f"the teacher's predictions do not correlate with the labels of valid (Pearson {reached:.3f})"
                "; check the label column, or train longer (epochs in the recipe's finetune stage)"
            )
        return
    labels = np.asarray(valid.labels)
    predicted = teacher.logits(teacher.encode(valid.texts)).argmax(axis=1)
    counts = np.zeros((task.outputs, task.outputs), dtype=np.int64)
    np.add.at(counts, (predicted, labels), 1)
    rows, columns = cast(tuple[Indices, Indices], linear_sum_assignment(counts, maximize=True))
    best = counts[rows, columns].sum() / len(labels)
    majority = np.bincount(labels).max() / len(labels)
    if not trained and best > max(reached, majority) + SWAPPED_MARGIN:
        own = order or range(task.outputs)
        meant = ", ".join(task.labels[int(columns[own.index(output)])] for output in range(task.outputs))
        raise TeacherError(
            f"the teacher's labels are in another order than the data's: accuracy on valid is {reached:.1%}, "
            f"but {best:.1%} if its outputs meant {meant}; name the teacher's labels in that order in "
            "id2label of its config.json, or train a new head with --fine-tune always"
        )
    if reached <= majority:
        raise TeacherError(
            f"the teacher is right on {reached:.1%} of valid, and always answering "
            f"{task.labels[int(np.bincount(labels).argmax())]!r} on {majority:.1%}: there is nothing to "
            "distil; train it longer (epochs), give it more rows, or check the label column"
        )


def _check_words(task: Task, valid: Examples, reached: float) -> None:
    """Refuse a teacher of several labels, tags or answers that does no better than one constant answer."""
    constant = 0.0
    if task.kind == "multilabel":
        rates = multi_hot(task, valid.labels).mean(axis=0)
        said = np.where(rates == rates.max(), 1.0, -1.0)[None].repeat(len(valid), axis=0)
        constant = score(task, said, valid.labels)[task.metric]
    if task.kind == "joint":
        plain = Counter(
            label["intent"]
            for label in valid.labels
            if label["intent"] >= 0 and set(label["tags"]) == {OUTSIDE}
        )
        constant = max(plain.values(), default=0) / len(valid)
    if reached <= constant:
        raise TeacherError(
            f"the teacher's {task.metric} on valid is {reached:.1%}, and one answer to everything gets "
            f"{constant:.1%}: there is nothing to distil; train it longer (epochs), give it more rows, or "
            "check the label column"
        )

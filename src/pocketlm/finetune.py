"""Transfer learning: a pre-trained encoder becomes the teacher of the user's task.

Devlin et al. 2019, BERT (https://arxiv.org/abs/1810.04805), section 4.1 and appendix A.3: a fresh
head over the pooled first position, all weights trained at a small learning rate for a few epochs.

Deviations: the best epoch on valid is kept rather than the last; word embeddings may stay as they
were pre-trained (`freeze_embeddings`), which saves time and hardly moves the score on little data;
there is no dropout (see `docs/decisions/0003`); regression is trained on standardized targets, and
the scale is folded into the head afterwards, so that a label range of 0-1 or 0-100 trains as well as
one of 0-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn import functional as F

from pocketlm.artifact import Artifact
from pocketlm.data.examples import Examples, load_split
from pocketlm.errors import RecipeError, TeacherError
from pocketlm.metrics import score
from pocketlm.models.load import Classifier, head_of, output_layer, with_new_head
from pocketlm.stage import Context
from pocketlm.task import Task
from pocketlm.tokenization.encode import Encoded
from pocketlm.train import Loss, Point, Precision, Settings, train

Mode = Literal["auto", "always", "never"]
Indices = NDArray[np.intp]
SWAPPED_MARGIN = 0.1
SHORTEST = 8


@dataclass(frozen=True)
class FineTune:
    """Fine-tune the teacher, or take it as it is where its head already fits the task.

    Args:
        mode: `auto` trains only a teacher without a head for this task; `always` replaces the head it
            has; `never` fails where it has none.
        freeze_embeddings: Leave the word embeddings as they were pre-trained.
        dropout: Of hidden states, attention and head while training.

    The rest is `pocketlm.train.Settings`; `max_length` is in pieces, and
    at most what the teacher has positions for.
    """

    mode: Mode = "auto"
    epochs: int = 3
    learning_rate: float = 5e-5
    batch_size: int = 32
    micro_batch: int | None = None
    warmup: float = 0.1
    patience: int | None = None
    evaluations: int = 1
    max_length: int = 128
    freeze_embeddings: bool = True
    dropout: float = 0.0
    precision: Precision = "auto"
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Settings.of(self)  # out of range is told at once
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout={self.dropout} is out of range; allowed: 0 up to below 1")
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
        order = fitting_head(head_of(source), task, self.mode)
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
        return artifact.with_part("teacher", folder).with_figures(
            teacher=figures, max_length=teacher.max_length
        )

    def _train(self, artifact: Artifact, context: Context, valid: Examples) -> tuple[Classifier, list[Point]]:
        task = artifact.task
        examples = load_split(artifact.parts["data"], "train")
        torch.manual_seed(self.seed)
        teacher = with_new_head(artifact.parts["teacher_source"], task, self.max_length, self.dropout)
        if self.freeze_embeddings:
            teacher.model.get_input_embeddings().weight.requires_grad_(False)
        encoded, valid_encoded = teacher.encode(examples.texts), teacher.encode(valid.texts)
        mean, scale = target_scale(examples, task)
        curve = train(
            teacher.model,
            label_loss(teacher, encoded, (np.asarray(examples.labels) - mean) / scale),
            encoded.lengths,
            Settings.of(self),
            lambda: valid_score(teacher, valid_encoded, valid),
            context.checkpoints,
            context.progress,
            "fine-tune the teacher",
        )
        fold_scale(teacher.model, mean, scale)
        return teacher, curve


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
    if len(head) != task.outputs:
        raise TeacherError(
            f"the teacher's head has {len(head)} outputs ({_some(head)}), but the task has {task.outputs} "
            f"({_some(task.labels) if task.labels else 'one number'}); {advice}"
        )
    if task.kind == "regression":
        return (0,)
    for spelled in (str, str.casefold):
        names = {spelled(name): index for index, name in enumerate(head)}
        if len(names) == len(head) and {spelled(label) for label in task.labels} == set(names):
            return tuple(names[spelled(label)] for label in task.labels)
    identity = tuple(range(len(head)))
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(head))
    if unnamed or list(task.labels) == [str(index) for index in identity]:
        return identity
    raise TeacherError(
        f"the teacher's labels are {_some(head)}, but the data's are {_some(task.labels)}; {advice}"
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
        TeacherError: no better than always saying the commonest label (or, in regression, no
            correlation at all), or the labels are in another order.
    """
    task = teacher.task
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


def valid_score(classifier: Classifier, encoded: Encoded, examples: Examples) -> float:
    """The headline metric of the task on some examples."""
    return score(classifier.task, classifier.logits(encoded), np.asarray(examples.labels))[
        classifier.task.metric
    ]


def label_loss(classifier: Classifier, encoded: Encoded, targets: np.ndarray) -> Loss:
    """The loss of `train` that fits a classifier to its labels."""
    target = torch.from_numpy(targets)

    def loss(model: nn.Module, indices: Sequence[int]) -> Tensor:
        logits = model(**classifier.inputs(encoded, indices)).logits.float()
        return supervised(logits, target[list(indices)], classifier.task)

    return loss


def supervised(logits: Tensor, targets: Tensor, task: Task) -> Tensor:
    """Cross-entropy with the labels, or squared error in regression.

    Args:
        logits: [batch, outputs].
        targets: Label indices or numbers, [batch].
        task: Decides which.

    Returns:
        One loss an example, [batch].
    """
    if task.kind == "regression":
        return (logits.squeeze(-1) - targets.to(logits.dtype)) ** 2
    return F.cross_entropy(logits, targets.long(), reduction="none")


def target_scale(examples: Examples, task: Task) -> tuple[float, float]:
    """Mean and standard deviation of regression targets; (0, 1) in classification."""
    if task.kind == "classification":
        return 0.0, 1.0
    labels = np.asarray(examples.labels, dtype=np.float64)
    # ptp is exactly 0 for equal labels; a standard deviation is not, because the mean is rounded.
    spread = float(labels.std()) if np.ptp(labels) else 0.0
    return float(labels.mean()), spread or 1.0


def fold_scale(model: nn.Module, mean: float, scale: float) -> None:
    """Let the head give y · scale + mean where it gave y."""
    layer = output_layer(model)
    with torch.no_grad():
        layer.weight.mul_(scale)
        layer.bias.mul_(scale).add_(mean)

"""A task's true labels: as tensors, as a loss an example, and as the score that is reached on valid.

Devlin et al. 2019, BERT (https://arxiv.org/abs/1810.04805): a tag is learned at the first piece of its word
(section 5.3), and of a question the first and the last word of the answer (section 4.2). What the input was
cut before is in no loss. Regression is trained on standardized targets, and the scale is folded into the
head afterwards, so that a label range of 0-1 or 0-100 trains as well as one of 0-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketlm.data.batches import pad
from pocketlm.data.examples import Examples
from pocketlm.models.heads import gathered
from pocketlm.models.load import Classifier, output_layer
from pocketlm.tasks.metrics import intents, multi_hot, score, true_tags
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import MISSING
from pocketlm.tokenization.encode import Encoded
from pocketlm.train import Loss


def valid_score(classifier: Classifier, encoded: Encoded, examples: Examples) -> float:
    """The headline metric of the task on some examples."""
    task = classifier.task
    return score(task, classifier.logits(encoded), examples.labels)[task.metric]


@dataclass(frozen=True)
class Targets:
    """The labels of examples as tensors.

    Args:
        text: Label indices (-1 is not trained on), [examples]; numbers, [examples]; or 0 and 1 for every
            label, [examples, outputs]. Empty where whole texts have no label.
        words: Tag indices, -1 behind the last word and for a tag that train lacks, [examples, most words];
            of questions the first and last word of the answer, [examples, 2]. Empty without words.
    """

    text: Tensor
    words: Tensor


def targets_of(examples: Examples, task: Task, mean: float = 0.0, scale: float = 1.0) -> Targets:
    """Labels as tensors; numbers as (number - mean) / scale."""
    labels, nothing = examples.labels, torch.zeros(len(examples), 0)
    if task.kind == "qa":
        places = [[label["start"], label["end"]] for label in labels]
        return Targets(nothing, torch.tensor(places, dtype=torch.long).reshape(-1, 2))
    words = nothing
    if task.tags:
        index = {tag: place for place, tag in enumerate(task.tags)}
        rows = [[index.get(tag, MISSING) for tag in tags] for tags in true_tags(task, labels)]
        words = torch.from_numpy(pad(rows, MISSING)[0])
    if task.kind == "tokens":
        return Targets(nothing, words)
    if task.kind == "joint":
        return Targets(torch.from_numpy(intents(labels)), words)
    if task.kind == "multilabel":
        return Targets(torch.from_numpy(multi_hot(task, labels)).float(), words)
    values = np.asarray(labels)
    return Targets(torch.from_numpy((values - mean) / scale if task.kind == "regression" else values), words)


def label_loss(classifier: Classifier, encoded: Encoded, targets: Targets) -> Loss:
    """The loss of `train` that fits a classifier to its labels."""
    task = classifier.task

    def loss(model: nn.Module, indices: Sequence[int]) -> Tensor:
        rows = list(indices)
        output = model(**classifier.inputs(encoded, rows))
        total = torch.zeros(len(rows))
        if task.outputs:
            total = total + supervised(output.logits.float(), targets.text[rows], task)
        if task.word_outputs:
            total = total + word_loss(classifier, output.word_logits, encoded, rows, targets)
        return total

    return loss


def word_loss(
    classifier: Classifier, word_logits: Tensor, encoded: Encoded, rows: Sequence[int], targets: Targets
) -> Tensor:
    """The part of `label_loss` that is about words, [batch]; `word_logits` are of every piece."""
    places, mask = classifier.words(encoded, rows)
    said = gathered(word_logits.float(), places)
    wanted = targets.words[list(rows)]
    if classifier.task.tags:
        wanted = wanted[:, : places.shape[1]]
    return supervised_words(said, wanted, mask, classifier.task)


def supervised_words(logits: Tensor, targets: Tensor, mask: Tensor, task: Task) -> Tensor:
    """Cross-entropy with the tags, mean over the words; or with the ends of the answer, mean over the two.

    Args:
        logits: Of every word, [batch, words, word_outputs].
        targets: Tag of every word, -1 where none is to be learned, [batch, words]; or the first and the
            last word of the answer, [batch, 2].
        mask: False for padding and words that were cut off, [batch, words].
        task: Decides which.

    Returns:
        One loss an example, [batch]; 0 where there is nothing to learn.
    """
    if task.kind == "qa":
        start, end = (
            _place_loss(logits[..., side], targets[:, side], mask) for side in range(task.word_outputs)
        )
        return (start + end) / 2
    counted = mask & (targets >= 0)
    losses = F.cross_entropy(logits.transpose(1, 2), targets.clamp_min(0), reduction="none")
    return (losses * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)


def _place_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of a word among the words that were seen, [batch]; 0 where it was not."""
    if not logits.shape[1]:
        return logits.sum(dim=1)
    seen = mask.gather(1, targets[:, None]).squeeze(1)
    lowest = torch.finfo(logits.dtype).min
    log = F.log_softmax(logits.masked_fill(~mask, lowest), dim=1)
    return -log.gather(1, targets[:, None]).squeeze(1).masked_fill(~seen, 0.0)


def supervised(logits: Tensor, targets: Tensor, task: Task) -> Tensor:
    """Cross-entropy with the labels, or squared error in regression.

    With several labels an example, the mean over the labels of the binary cross-entropy.

    Args:
        logits: [batch, outputs].
        targets: Label indices (0 loss for -1) or numbers, [batch]; 0 and 1, [batch, outputs].
        task: Decides which.

    Returns:
        One loss an example, [batch].
    """
    if task.kind == "regression":
        return (logits.squeeze(-1) - targets.to(logits.dtype)) ** 2
    if task.kind == "multilabel":
        wanted = targets.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=-1)
    return F.cross_entropy(logits, targets.long(), reduction="none", ignore_index=MISSING)


def target_scale(examples: Examples, task: Task) -> tuple[float, float]:
    """Mean and standard deviation of regression targets; (0, 1) for every other task."""
    if task.kind != "regression":
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

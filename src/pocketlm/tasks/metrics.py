"""Scores of a model on a test split, and how sure they are.

Every metric takes what the model said and what is true, in that order, as arrays [examples]. What a
label is depends on the task; see `pocketlm.data.examples.Examples`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pocketlm.errors import DataError, InputError, TeacherError
from pocketlm.tasks.answers import answers_said, exact_match, token_f1
from pocketlm.tasks.spans import f1_of, precision_recall, span_counts, tags_said
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits

Logits = np.ndarray | WordLogits
"""Float [examples, outputs]; `WordLogits` where a task says something of words."""

Labels = np.ndarray | Sequence[Any]
"""One an example, as `pocketlm.data.examples.Examples` holds them."""

Metric = Callable[[np.ndarray], float]
"""A score of the rows with the given indices: int [rows] -> number."""


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of examples with the right label, 0 to 1."""
    return int(np.count_nonzero(predicted == labels)) / len(labels)


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean F1 over the labels that occur, said or true; each label counts the same, 0 to 1."""
    occurring: list[int] = np.unique(np.concatenate([predicted, labels])).tolist()
    return sum(f1_binary(predicted, labels, label) for label in occurring) / len(occurring)


def f1_binary(predicted: np.ndarray, labels: np.ndarray, positive: int = 1) -> float:
    """F1 of one label, 0 to 1; 0 where the label is neither said nor true."""
    said, true = predicted == positive, labels == positive
    either = int(said.sum() + true.sum())
    return 2 * int((said & true).sum()) / either if either else 0.0


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation for two labels or more, -1 to 1; 0 where either side is constant.

    Reference: Gorodkin (2004), Comparing two K-category assignments by a K-category correlation coefficient.
    """
    classes = np.unique(np.concatenate([predicted, labels]))
    said = (predicted[:, None] == classes).sum(axis=0).astype(np.float64)  # [classes]
    true = (labels[:, None] == classes).sum(axis=0).astype(np.float64)  # [classes]
    n, right = float(len(labels)), float((predicted == labels).sum())
    spread = (n**2 - said @ said) * (n**2 - true @ true)
    return float((right * n - said @ true) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Linear correlation, -1 to 1.

    0.0 where either side is constant or there are fewer than two examples: such a model knows nothing of
    the order, and a NaN would travel on into tables and averages.
    """
    x, y = predicted.astype(np.float64), labels.astype(np.float64)
    # ptp is exactly 0 for a constant; a standard deviation is not, because the mean is rounded.
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Correlation of ranks, -1 to 1; equal values share their mean rank. 0.0 as in `pearson`."""
    return pearson(_ranks(predicted), _ranks(labels))


def multi_hot(task: Task, labels: Labels) -> np.ndarray:
    """Lists of label indices as a table: True where an example has the label, bool [examples, outputs]."""
    table = np.zeros((len(labels), task.outputs), dtype=np.bool_)
    for row, indices in enumerate(labels):
        table[row, list(indices)] = True
    return table


def label_counts(said: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Right, said and true labels of every example: bool [examples, labels] twice -> int [examples, 3]."""
    return np.stack([(said & true).sum(axis=1), said.sum(axis=1), true.sum(axis=1)], axis=1)


def macro_f1_of_labels(said: np.ndarray, true: np.ndarray) -> float:
    """Mean F1 over the labels that occur, said or true; bool [examples, labels] twice."""
    either = said.sum(axis=0) + true.sum(axis=0)  # [labels]
    occurring = either > 0
    right = (said & true).sum(axis=0)[occurring]
    return float((2 * right / either[occurring]).mean()) if occurring.any() else 0.0


def score(task: Task, logits: Logits, labels: Labels) -> dict[str, float]:
    """Every metric of a task; the headline one is `task.metric`.

    Args:
        task: Its kind decides on the metrics.
        logits: Float [examples, outputs], or `WordLogits`.
        labels: Of the same examples.

    Returns:
        Classification: `accuracy`, `macro_f1` and `matthews`, with two labels also `f1` (of the last
        label). Regression: `pearson` and `spearman`. Multilabel: `micro_f1`, `macro_f1` and
        `subset_accuracy` (all labels right). Tokens: `span_f1`, `span_precision` and `span_recall`.
        Joint: `sentence_accuracy` (the intent and all tags right), `intent_accuracy` and `span_f1`.
        Questions: `f1` and `exact_match`.

    Raises:
        DataError: there are no examples.
        InputError: the shapes do not fit, or a logit is not a finite number.
    """
    if isinstance(logits, WordLogits):
        return _word_scores(task, logits, labels)
    _check(task, logits, labels)
    if task.kind == "regression":
        values, wanted = logits[:, 0], np.asarray(labels)
        return {"pearson": pearson(values, wanted), "spearman": spearman(values, wanted)}
    if task.kind == "multilabel":
        said, true = logits >= 0, multi_hot(task, labels)
        return {
            "micro_f1": f1_of(label_counts(said, true)),
            "macro_f1": macro_f1_of_labels(said, true),
            "subset_accuracy": float((said == true).all(axis=1).mean()),
        }
    predicted, wanted = logits.argmax(axis=1), np.asarray(labels)
    scores = {
        "accuracy": accuracy(predicted, wanted),
        "macro_f1": macro_f1(predicted, wanted),
        "matthews": matthews(predicted, wanted),
    }
    if task.outputs == 2:
        scores["f1"] = f1_binary(predicted, wanted)
    return scores


def headline(task: Task, logits: Logits, labels: Labels) -> Metric:
    """The headline metric of a task as a function of rows, for the intervals below.

    Raises:
        DataError: there are no examples.
        InputError: the shapes do not fit, or a logit is not a finite number.
    """
    if isinstance(logits, WordLogits):
        return _word_headline(task, logits, labels)
    _check(task, logits, labels)
    if task.kind == "multilabel":
        return _f1_metric(label_counts(logits >= 0, multi_hot(task, labels)))
    wanted = np.asarray(labels)
    said = logits[:, 0] if task.kind == "regression" else logits.argmax(axis=1)
    metric = pearson if task.kind == "regression" else accuracy
    return lambda rows: metric(said[rows], wanted[rows])


def _word_scores(task: Task, logits: WordLogits, labels: Labels) -> dict[str, float]:
    _check_words(task, logits, labels)
    if task.kind == "qa":
        said = answers_said(task, logits)
        return {
            "f1": _mean(
                token_f1(answer, label["answers"]) for answer, label in zip(said, labels, strict=True)
            ),
            "exact_match": _mean(
                exact_match(answer, label["answers"]) for answer, label in zip(said, labels, strict=True)
            ),
        }
    tags = tags_said(task, logits)
    counts = span_counts(tags, true_tags(task, labels))
    if task.kind == "tokens":
        precision, recall = precision_recall(counts)
        return {"span_f1": f1_of(counts), "span_precision": precision, "span_recall": recall}
    return {
        "sentence_accuracy": float(sentences_right(task, logits, labels).mean()),
        "intent_accuracy": float((logits.text.argmax(axis=1) == intents(labels)).mean()),
        "span_f1": f1_of(counts),
    }


def _word_headline(task: Task, logits: WordLogits, labels: Labels) -> Metric:
    _check_words(task, logits, labels)
    if task.kind == "tokens":
        return _f1_metric(span_counts(tags_said(task, logits), true_tags(task, labels)))
    if task.kind == "joint":
        right = sentences_right(task, logits, labels)
    else:
        said = answers_said(task, logits)
        right = np.array(
            [token_f1(answer, label["answers"]) for answer, label in zip(said, labels, strict=True)]
        )
    return lambda rows: float(right[rows].mean())


def sentences_right(task: Task, logits: WordLogits, labels: Labels) -> np.ndarray:
    """Where the intent and the tags of all words are right, bool [examples]."""
    tags, true = tags_said(task, logits), true_tags(task, labels)
    alike = np.array([ours == theirs for ours, theirs in zip(tags, true, strict=True)])
    return alike & (logits.text.argmax(axis=1) == intents(labels))


def true_tags(task: Task, labels: Labels) -> list[list[str]]:
    """The tag names of every word of every example."""
    return [list(label["tags"] if task.kind == "joint" else label) for label in labels]


def intents(labels: Labels) -> np.ndarray:
    """Intent index of every example of a joint task; -1 for one that train does not have."""
    return np.array([label["intent"] for label in labels], dtype=np.int64)


def _f1_metric(counts: np.ndarray) -> Metric:
    return lambda rows: f1_of(counts[rows])


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def confusion(task: Task, logits: Logits, labels: Labels) -> list[list[int]]:
    """Counts [true label][predicted label], both in the task's order; of a joint task, of its intents.

    An intent that train does not have is in no row.

    Raises:
        DataError: there are no examples.
        InputError: the task has no one label an example, the shapes do not fit, or a logit is not a finite
            number.
    """
    if task.kind not in ("classification", "joint"):
        raise InputError(f"the task {task.kind} has no confusion matrix; allowed: classification, joint")
    if isinstance(logits, WordLogits):
        _check_words(task, logits, labels)
        said, true = logits.text.argmax(axis=1), intents(labels)
        said, true = said[true >= 0], true[true >= 0]
    else:
        _check(task, logits, labels)
        said, true = logits.argmax(axis=1), np.asarray(labels)
    counts = np.zeros((task.outputs, task.outputs), dtype=np.int64)
    np.add.at(counts, (true, said), 1)
    return counts.tolist()


def bootstrap_interval(
    metric: Metric, n: int, seed: int = 0, samples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap: where a metric lies when the test split is drawn again.

    Args:
        metric: Score of the given rows.
        n: Number of test examples.
        seed: Of the resampling; the same seed gives the same interval.
        samples: Number of resampled splits.
        level: Share of them inside the interval.

    Returns:
        The low and the high end.

    Raises:
        DataError: there are no examples.
    """
    return _percentiles(np.array([metric(rows) for rows in _resampled(n, seed, samples)]), level)


def retention_interval(
    pocket_metric: Metric,
    teacher_metric: Metric,
    n: int,
    seed: int = 0,
    samples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap interval of retention: the pocket's metric ÷ the teacher's, in percent.

    Both are scored on the same resampled rows. Their luck is shared, so the interval is narrower than
    that of two independent samples, and honest. Rows on which the teacher scores 0 or less are left out.

    Raises:
        DataError: there are no examples.
        TeacherError: the teacher scores 0 or less on every resample.
    """
    drawn = ((pocket_metric(rows), teacher_metric(rows)) for rows in _resampled(n, seed, samples))
    retention = [100 * pocket / teacher for pocket, teacher in drawn if teacher > 0]
    if not retention:
        raise TeacherError(
            "the teacher scores 0 or less on the test split, so nothing can be retained of it; "
            "check its labels and their order, or fine-tune it first"
        )
    return _percentiles(np.array(retention), level)


def _check(task: Task, logits: np.ndarray, labels: Labels) -> None:
    if len(labels) == 0:
        raise DataError("there are no examples to score; give a test split with at least one row")
    if logits.shape != (len(labels), task.outputs):
        raise InputError(
            f"logits have shape {list(logits.shape)}; {len(labels)} labels and this task need "
            f"[{len(labels)}, {task.outputs}]"
        )
    if not np.isfinite(logits).all():
        raise InputError(
            "the logits hold NaN or infinity, so the model has diverged; "
            "train it again with a lower learning rate or in float32"
        )


def _check_words(task: Task, logits: WordLogits, labels: Labels) -> None:
    _check(task, logits.text, labels)
    words = int(logits.offsets[-1])
    if logits.words.shape != (words, task.word_outputs):
        raise InputError(
            f"word logits have shape {list(logits.words.shape)}; {words} words and this task need "
            f"[{words}, {task.word_outputs}]"
        )
    if not np.isfinite(logits.words).all():
        raise InputError(
            "the word logits hold NaN or infinity, so the model has diverged; "
            "train it again with a lower learning rate or in float32"
        )


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _resampled(n: int, seed: int, samples: int) -> list[np.ndarray]:
    if n < 1:
        raise DataError("there are no examples to resample; give a test split with at least one row")
    generator = np.random.default_rng(seed)
    return [generator.integers(0, n, n) for _ in range(samples)]


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

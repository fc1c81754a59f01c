"""Scores of a model on a test split, and how sure they are.

Every metric takes what the model said and what is true, in that order, as arrays [examples].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pocketlm.errors import DataError, InputError, TeacherError
from pocketlm.task import Task

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


def score(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of a task; the headline one is `task.metric`.

    Args:
        task: Its kind decides on the metrics.
        logits: Float [examples, outputs].
        labels: Label indices, int [examples], or values, float [examples].

    Returns:
        `accuracy`, `macro_f1` and `matthews`, with two labels also `f1` (of the last label);
        for a regression `pearson` and `spearman`.

    Raises:
        DataError: there are no examples.
        InputError: the shapes do not fit, or a logit is not a finite number.
    """
    _check(task, logits, labels)
    if task.kind == "regression":
        values = logits[:, 0]
        return {"pearson": pearson(values, labels), "spearman": spearman(values, labels)}
    predicted = logits.argmax(axis=1)
    scores = {
        "accuracy": accuracy(predicted, labels),
        "macro_f1": macro_f1(predicted, labels),
        "matthews": matthews(predicted, labels),
    }
    if task.outputs == 2:
        scores["f1"] = f1_binary(predicted, labels)
    return scores


def headline(task: Task, logits: np.ndarray, labels: np.ndarray) -> Metric:
    """The headline metric of a task as a function of rows, for the intervals below.

    Raises:
        DataError: there are no examples.
        InputError: the shapes do not fit, or a logit is not a finite number.
    """
    _check(task, logits, labels)
    said = logits[:, 0] if task.kind == "regression" else logits.argmax(axis=1)
    metric = pearson if task.kind == "regression" else accuracy
    return lambda rows: metric(said[rows], labels[rows])


def confusion(task: Task, logits: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """Counts [true label][predicted label], both in the task's order.

    Raises:
        DataError: there are no examples.
        InputError: the task is a regression, the shapes do not fit, or a logit is not a finite number.
    """
    if task.kind != "classification":
        raise InputError("a regression has no confusion matrix; allowed: classification")
    _check(task, logits, labels)
    counts = np.zeros((task.outputs, task.outputs), dtype=np.int64)
    np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
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


def _check(task: Task, logits: np.ndarray, labels: np.ndarray) -> None:
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

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from pocketlm.errors import DataError, InputError, TeacherError
from pocketlm.tasks.metrics import (
    Metric,
    accuracy,
    bootstrap_interval,
    confusion,
    f1_binary,
    headline,
    macro_f1,
    matthews,
    pearson,
    retention_interval,
    score,
    spearman,
)
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits

TWO = Task("classification", pair=False, labels=("no", "yes"))
FOUR = Task("classification", pair=False, labels=("a", "b", "c", "d"))
VALUE = Task("regression", pair=True)

said_and_true = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40).map(
    lambda pairs: tuple(np.array(side) for side in zip(*pairs, strict=True))
)
# Halves, so that ties occur.
values = st.lists(st.tuples(st.integers(-8, 8), st.integers(-8, 8)), min_size=2, max_size=40).map(
    lambda pairs: tuple(np.array(side) / 2 for side in zip(*pairs, strict=True))
)


@given(said_and_true)
def test_classification_agrees_with_scikit_learn(sides: tuple[np.ndarray, np.ndarray]) -> None:
    said, true = sides
    assert accuracy(said, true) == pytest.approx(sk.accuracy_score(true, said))
    assert macro_f1(said, true) == pytest.approx(sk.f1_score(true, said, average="macro"))
    assert matthews(said, true) == pytest.approx(sk.matthews_corrcoef(true, said), abs=1e-12)
    assert f1_binary(said, true, 2) == pytest.approx(
        sk.f1_score(true, said, labels=[2], average="macro", zero_division=0)
    )


@given(values)
def test_correlations_agree_with_scipy_and_are_0_for_a_constant(sides: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = sides
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert pearson(x, y) == spearman(x, y) == 0.0
        return
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_a_constant_that_floats_cannot_hold_is_still_constant() -> None:
    assert pearson(np.full(1000, 0.1, dtype=np.float32), np.arange(1000.0)) == 0.0


def test_correlation_ignores_scale_and_spearman_every_monotone_map() -> None:
    x = np.random.default_rng(0).normal(size=50)
    assert pearson(3 * x - 7, x) == pytest.approx(1)
    assert pearson(-x, x) == pytest.approx(-1)
    assert spearman(np.exp(x), x) == pytest.approx(1)
    assert pearson(np.exp(x), x) < 0.95


def test_score_names_what_the_task_asks_for() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    scores = score(TWO, logits, np.array([0, 1, 0, 0]))
    assert list(scores) == ["accuracy", "macro_f1", "matthews", "f1"]
    assert scores["accuracy"] == 0.75
    assert scores["f1"] == pytest.approx(2 / 3)
    assert "f1" not in score(FOUR, np.eye(4), np.arange(4))
    scores = score(VALUE, np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 3.0]))
    assert list(scores) == ["pearson", "spearman"]
    assert scores["spearman"] == pytest.approx(1)


def test_headline_on_all_rows_is_the_tasks_metric() -> None:
    generator = np.random.default_rng(1)
    for task, labels in ((FOUR, generator.integers(0, 4, 60)), (VALUE, generator.normal(size=60))):
        logits = generator.normal(size=(60, task.outputs))
        metric = headline(task, logits, labels)
        assert metric(np.arange(60)) == pytest.approx(score(task, logits, labels)[task.metric])


def test_confusion_counts_true_by_said() -> None:
    logits = np.eye(4)[[0, 1, 1, 3]]
    assert confusion(FOUR, logits, np.array([0, 0, 1, 2])) == [
        [1, 1, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
    ]
    with pytest.raises(InputError, match="the task regression has no confusion matrix; allowed: classif"):
        confusion(VALUE, np.zeros((1, 1)), np.zeros(1))


def test_unusable_logits_are_told() -> None:
    with pytest.raises(DataError, match="no examples to score; give a test split"):
        score(TWO, np.zeros((0, 2)), np.zeros(0, dtype=int))
    with pytest.raises(InputError, match=r"shape \[3, 4\]; 3 labels and this task need \[3, 2\]"):
        score(TWO, np.zeros((3, 4)), np.zeros(3, dtype=int))
    with pytest.raises(InputError, match="NaN or infinity, so the model has diverged; train it again"):
        score(TWO, np.array([[np.nan, 0.0]]), np.zeros(1, dtype=int))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for trial in range(100):
        right = generator.random(200) < 0.8
        low, high = bootstrap_interval(lambda rows, right=right: right[rows].mean(), 200, trial, samples=200)
        covered += low <= 0.8 <= high
    assert 87 <= covered <= 99


def test_the_interval_narrows_with_more_rows_and_repeats_with_its_seed() -> None:
    right = np.random.default_rng(3).random(4000) < 0.7

    def width(n: int) -> float:
        low, high = bootstrap_interval(lambda rows: right[rows].mean(), n)
        assert low < right[:n].mean() < high
        return high - low

    assert width(4000) < width(1000) < width(100)
    assert width(100) == width(100)
    with pytest.raises(DataError, match="no examples to resample"):
        bootstrap_interval(lambda rows: 0.0, 0)


def test_retention_is_paired() -> None:
    teacher = np.random.default_rng(4).random(300) < 0.8
    pocket = teacher.copy()
    pocket[:3] = ~pocket[:3]  # they differ on three rows only

    def of(right: np.ndarray) -> Metric:
        return lambda rows: right[rows].mean()

    assert retention_interval(of(teacher), of(teacher), 300) == pytest.approx((100, 100))
    low, high = retention_interval(of(pocket), of(teacher), 300)
    assert low <= 100 * pocket.mean() / teacher.mean() <= high
    alone_low, alone_high = bootstrap_interval(of(pocket), 300)
    assert high - low < 100 * (alone_high - alone_low) / 3


def test_nothing_can_be_retained_of_a_teacher_at_zero() -> None:
    with pytest.raises(TeacherError, match=r"scores 0 or less .* check its labels and their order"):
        retention_interval(lambda rows: 0.5, lambda rows: 0.0, 10)


# Several labels, tags, intents and answers

MANY = Task("multilabel", pair=False, labels=("a", "b", "c"))
TAGGED = Task("tokens", pair=False, tags=("B-x", "I-x", "O"))
BOTH = Task("joint", pair=False, labels=("go", "stop"), tags=("B-x", "I-x", "O"))
QUESTION = Task("qa", pair=True)

tables = st.integers(1, 12).flatmap(
    lambda rows: st.tuples(
        *[st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=rows, max_size=rows)] * 2
    )
)


@given(tables)
def test_multilabel_agrees_with_scikit_learn(sides: tuple[list[list[bool]], list[list[bool]]]) -> None:
    said, true = (np.array(side) for side in sides)
    labels = [np.flatnonzero(row).tolist() for row in true]
    found = score(MANY, np.where(said, 0.0, -1.0), labels)
    assert found["micro_f1"] == pytest.approx(sk.f1_score(true, said, average="micro", zero_division=0))
    assert found["subset_accuracy"] == pytest.approx(sk.accuracy_score(true, said))
    occurring = [place for place in range(3) if said[:, place].any() or true[:, place].any()]
    macro = sk.f1_score(true, said, average="macro", labels=occurring, zero_division=0) if occurring else 0.0
    assert found["macro_f1"] == pytest.approx(macro)
    every = np.arange(len(labels))
    assert headline(MANY, np.where(said, 0.0, -1.0), labels)(every) == found["micro_f1"]


def tagged(texts: list[str], tags: list[list[str]], text: np.ndarray, task: Task) -> WordLogits:
    flat = [task.tags.index(tag) for row in tags for tag in row]
    offsets = np.cumsum([0, *map(len, tags)])
    words = np.eye(len(task.tags))[flat] if flat else np.zeros((0, len(task.tags)))
    return WordLogits(text, words, np.ones(len(flat), dtype=bool), offsets, [(text,) for text in texts])


def test_tags_are_scored_over_all_rows() -> None:
    logits = tagged(["a b", "c"], [["B-x", "I-x"], ["O"]], np.zeros((2, 0)), TAGGED)
    labels = [["B-x", "O"], ["O"]]
    assert score(TAGGED, logits, labels) == {"span_f1": 0.0, "span_precision": 0.0, "span_recall": 0.0}
    labels = [["B-x", "I-x"], ["B-new"]]
    found = score(TAGGED, logits, labels)
    assert found == pytest.approx({"span_f1": 2 / 3, "span_precision": 1.0, "span_recall": 0.5})
    metric = headline(TAGGED, logits, labels)
    assert metric(np.array([0, 1])) == found["span_f1"]
    assert (metric(np.array([0, 0])), metric(np.array([1]))) == (1.0, 0.0)


def test_a_sentence_is_right_if_its_intent_and_all_its_tags_are() -> None:
    tags = [["B-x"], ["O"], ["O"], ["O"]]
    logits = tagged(["a", "b", "c", "d"], tags, np.eye(2)[[0, 0, 1, 1]], BOTH)
    labels = [
        {"intent": 0, "tags": ["B-x"]},
        {"intent": 1, "tags": ["O"]},
        {"intent": 1, "tags": ["B-new"]},
        {"intent": -1, "tags": ["O"]},
    ]
    found = score(BOTH, logits, labels)
    assert found == pytest.approx({"sentence_accuracy": 0.25, "intent_accuracy": 0.5, "span_f1": 2 / 3})
    assert headline(BOTH, logits, labels)(np.array([0, 1])) == 0.5
    assert confusion(BOTH, logits, labels) == [[1, 0], [1, 1]], "an unknown intent is in no row"


def test_answers_are_scored_by_the_best_right_one() -> None:
    words = np.array([[9.0, 0], [0, 9.0], [0, 0], [9.0, 9.0]])
    logits = WordLogits(
        np.zeros((2, 0)),
        words,
        np.ones(4, dtype=bool),
        np.array([0, 3, 4]),
        [("?", "red car now"), ("?", "no")],
    )
    labels = [
        {"answers": ["car", "the red car"], "start": 1, "end": 1},
        {"answers": ["yes"], "start": 0, "end": 0},
    ]
    assert score(QUESTION, logits, labels) == {"f1": 0.5, "exact_match": 0.5}
    assert headline(QUESTION, logits, labels)(np.array([0])) == 1.0


def test_word_logits_are_checked() -> None:
    logits = tagged(["a b"], [["B-x", "O"]], np.zeros((1, 0)), TAGGED)
    with pytest.raises(DataError, match="no examples to score"):
        score(TAGGED, tagged([], [], np.zeros((0, 0)), TAGGED), [])
    with pytest.raises(InputError, match="word logits hold NaN"):
        score(TAGGED, replace(logits, words=logits.words * np.nan), [["O", "O"]])
    with pytest.raises(
        InputError, match=r"word logits have shape \[2, 1\]; 2 words and this task need \[2, 3\]"
    ):
        score(TAGGED, replace(logits, words=logits.words[:, :1]), [["O", "O"]])

"""Teacher and pocket side by side: every figure is what the files and the logits say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pocketlm import load
from pocketlm.data.examples import Examples, load_split
from pocketlm.errors import TeacherError
from pocketlm.measure.compare import scores_of, torch_threads, weights_bytes
from pocketlm.measure.kinds import SHOWN_CHARACTERS, SHOWN_DISAGREEMENTS, confusions, disagreements
from pocketlm.models.load import Classifier
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import inputs_of
from tests.conftest import Made

THREE = Task("classification", pair=False, labels=("a", "b", "c"))
VALUE = Task("regression", pair=False)


@st.composite
def said(draw: st.DrawFn, task: Task, least: int = 1) -> tuple[Examples, dict[str, np.ndarray]]:
    """Examples and what two models say of them."""
    count = draw(st.integers(least, 40))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = {name: chance.normal(size=(count, task.outputs)) for name in ("teacher", "pocket")}
    if draw(st.booleans()):
        logits["pocket"] = logits["teacher"] + 0.3 * logits["pocket"]
    regression = task.kind == "regression"
    labels = chance.normal(size=count) if regression else chance.integers(0, task.outputs, count)
    return Examples([(f"text {n}",) for n in range(count)], labels.tolist()), logits


# Scores


@given(said(THREE))
@settings(deadline=None, max_examples=20)
def test_retention_is_the_pockets_score_over_the_teachers(case: Any) -> None:
    test, logits = case
    right = {name: float(np.mean(v.argmax(axis=1) == test.labels)) for name, v in logits.items()}
    assume(right["teacher"] > 0)
    teacher, pocket = (scores_of(test, logits, name, THREE) for name in ("teacher", "pocket"))
    assert (teacher["score"], pocket["score"]) == (right["teacher"], right["pocket"])
    assert teacher["retention_pct"] == 100 and teacher["retention_low"] is None
    assert pocket["retention_pct"] == pytest.approx(100 * right["pocket"] / right["teacher"])
    assert pocket["score_low"] <= pocket["score"] <= pocket["score_high"]
    assert pocket["retention_low"] <= pocket["retention_high"]
    assert set(pocket["other_metrics"]) == {"macro_f1", "matthews"}


def test_a_pocket_that_says_what_its_teacher_says_keeps_everything() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 3))
    test = Examples([("x",)] * 50, logits.argmax(axis=1).tolist())
    row = scores_of(test, {"teacher": logits, "pocket": logits * 2}, "pocket", THREE)
    assert row["retention_pct"] == row["retention_low"] == row["retention_high"] == 100


def test_a_teacher_that_is_always_wrong_cannot_be_retained() -> None:
    test = Examples([("x",)] * 9, [0] * 9)
    logits = {"teacher": np.eye(3)[[1] * 9], "pocket": np.eye(3)[[0] * 9]}
    with pytest.raises(TeacherError, match="nothing can be retained"):
        scores_of(test, logits, "pocket", THREE)


@given(said(THREE))
@settings(deadline=None, max_examples=20)
def test_confusion_counts_every_example_once(case: Any) -> None:
    test, logits = case
    counts = confusions(test, logits, THREE)
    assert counts is not None and counts["labels"] == ["a", "b", "c"]
    for name, values in logits.items():
        matrix = np.array(counts[name])
        assert matrix.sum() == len(test)
        assert matrix.sum(axis=1).tolist() == np.bincount(test.labels, minlength=3).tolist()
        assert matrix.trace() == (values.argmax(axis=1) == test.labels).sum()


def test_a_regression_has_no_confusion() -> None:
    assert confusions(Examples([("x",)], [1.0]), {}, VALUE) is None


# Disagreements


@given(said(THREE))
@settings(deadline=None)
def test_disagreements_are_all_there_and_nothing_else(case: Any) -> None:
    test, logits = case
    found = disagreements(test, logits, THREE)
    names = {name: [THREE.labels[i] for i in values.argmax(axis=1)] for name, values in logits.items()}
    differ = [n for n in range(len(test)) if names["teacher"][n] != names["pocket"][n]]
    assert len(found) == min(len(differ), SHOWN_DISAGREEMENTS)
    rows = [int(entry["texts"][0].split()[1]) for entry in found]
    assert len(set(rows)) == len(rows) and set(rows) <= set(differ)
    for row, entry in zip(rows, found, strict=True):
        assert entry["teacher"] == names["teacher"][row] != entry["pocket"] == names["pocket"][row]
        assert entry["label"] == THREE.labels[test.labels[row]]


@given(said(VALUE, least=2))
@settings(deadline=None)
def test_the_largest_differences_of_numbers_come_first(case: Any) -> None:
    test, logits = case
    found = disagreements(test, logits, VALUE)
    distance = np.abs(logits["teacher"] - logits["pocket"])[:, 0]
    rows = [int(entry["texts"][0].split()[1]) for entry in found]
    assert list(distance[rows]) == sorted(distance, reverse=True)[:SHOWN_DISAGREEMENTS]
    assert found[0]["teacher"] == f"{logits['teacher'][rows[0], 0]:.2f}"


def test_long_texts_are_cut_and_pairs_kept() -> None:
    test = Examples([("x" * 10_000, "y")], [0])
    logits = {"teacher": np.eye(3)[[0]], "pocket": np.eye(3)[[1]]}
    (entry,) = disagreements(test, logits, THREE)
    assert entry["texts"] == ["x" * SHOWN_CHARACTERS, "y"]


def test_inputs_are_as_the_runtime_takes_them() -> None:
    assert inputs_of([("a",), ("b", "c")]) == ["a", ("b", "c")]


# Bytes and threads


def test_a_teacher_weighs_its_safetensors_and_its_tokenizer(tmp_path: Path) -> None:
    sizes = {
        "model-1.safetensors": 5,
        "model-2.safetensors": 7,
        "tokenizer.json": 11,
        "pytorch_model.bin": 1000,
    }
    for name, size in {**sizes, "vocab.txt": 100}.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert weights_bytes(tmp_path) == 5 + 7 + 11


def test_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        raise KeyError
    assert torch.get_num_threads() == before


# A real comparison


def test_sizes_and_parameters_are_those_of_the_files(made: Made) -> None:
    rows = {row["name"]: row for row in made.artifact().figures["measured"]["rows"]}
    pocket, teacher = made.pocket, made.part("teacher")
    shipped = sum((pocket / name).stat().st_size for name in ("model.onnx", "tokenizer.json"))
    assert rows["pocket"]["size_bytes"] == shipped
    kept = sum((teacher / name).stat().st_size for name in ("model.safetensors", "tokenizer.json"))
    assert rows["teacher"]["size_bytes"] == kept
    from safetensors.torch import load_file

    for name, folder in (("teacher", teacher), ("pocket", pocket)):
        tensors = load_file(folder / "model.safetensors")
        assert rows[name]["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    ratios = made.artifact().figures["measured"]["ratios"]
    assert ratios["smaller_x"] == kept / shipped
    assert ratios["fewer_parameters_x"] == rows["teacher"]["parameters"] / rows["pocket"]["parameters"]


def test_scores_are_those_of_the_logits(made: Made) -> None:
    artifact = made.artifact()
    measured = artifact.figures["measured"]
    test = load_split(artifact.parts["data"], "test")
    teacher = Classifier.load(artifact.parts["teacher"], artifact.task, made.info["max_length"])
    logits = {
        "teacher": teacher.logits(teacher.encode(test.texts)),
        "pocket": load(made.pocket, threads=1).logits(inputs_of(test.texts)),
    }
    for row in measured["rows"]:
        assert row["score"] == np.mean(logits[row["name"]].argmax(axis=1) == test.labels)
    assert measured["confusion"] == confusions(test, logits, artifact.task)
    assert measured["examples"] == len(test) == 40
    lengths = teacher.encode(test.texts).lengths
    assert measured["tokens_p50"] == int(np.median(lengths))


def test_times_memory_and_ratios_are_there_and_in_order(made: Made) -> None:
    measured = made.artifact().figures["measured"]
    for row in measured["rows"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["throughput_per_s"] > 0
        assert row["ram_bytes"] is None or 0 < row["ram_bytes"] < 2e9
        assert 5 < row["start_ms"] < 60_000
    for name in ("faster_x", "faster_x_eager_torch", "throughput_x"):
        ratio = measured["ratios"][name]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert set(measured["request_wh"]) == {"teacher", "pocket"}

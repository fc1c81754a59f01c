"""Calibration: biases that are known are found again, and a student comes nearer to its teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.distill.calibrate import Calibrate, fitted_biases
from pocketlm.distill.losses import logit_kl
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier, output_layer
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from tests.tiny_models import JOINT, MANY, MAX_LENGTH, SINGLE, TAGGED, VALUE, classifier, prepared

CHANCE = torch.Generator().manual_seed(0)
LOGITS = torch.randn(400, 5, generator=CHANCE) * 2


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_biases_that_were_taken_away_are_found_again(kind: str) -> None:
    away = torch.tensor([0.0, 1.0, -2.0, 0.5, 0.5])
    found = fitted_biases(LOGITS - away, LOGITS, kind, spread=100.0)  # pyright: ignore[reportArgumentType]
    if kind == "classification":  # where all classes shift alike, nothing changes
        found, away = found - found.mean(), away - away.mean()
    assert torch.allclose(found, away, atol=0.01)


def test_few_texts_are_trusted_less() -> None:
    away = torch.tensor([0.0, 3.0, 0.0, 0.0, 0.0])
    sizes = [
        float(fitted_biases((LOGITS - away)[:texts], LOGITS[:texts], "classification", spread).abs().max())
        for texts, spread in ((400, 3.0), (4, 3.0), (4, 0.1))
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def taught(folder: Path, task: Task) -> Artifact:
    classifier(task=task).save(folder / "teacher")
    student = classifier(task=task, seed=1)
    if task.outputs:
        with torch.no_grad():  # as one that is too sure of the first answer
            output_layer(student.model).bias[0] += 3.0
    student.save(folder / "student")
    artifact = prepared(folder, task, train=24, valid=60).with_figures(
        max_length=MAX_LENGTH, distil={"valid_score": -1.0, "curve": []}
    )
    return artifact.with_part("teacher", folder / "teacher").with_part("student", folder / "student")


@pytest.mark.parametrize("task", [SINGLE, MANY, VALUE, JOINT], ids=lambda task: task.kind)
def test_the_student_comes_nearer_by_its_biases_alone(tmp_path: Path, task: Task) -> None:
    artifact = taught(tmp_path, task)
    done = Calibrate()(artifact, Context(tmp_path / "out", tmp_path / "out"))
    told = done.figures["calibration"]
    assert told["after"] < 0.95 * told["before"]
    assert 0.0 <= abs(done.figures["distil"]["valid_score"]) <= 1.0
    before, after = (
        Classifier.load(one.parts["student"], task, MAX_LENGTH).model.state_dict() for one in (artifact, done)
    )
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert len(changed) == 1 and changed[0].endswith("bias")


def test_a_student_needs_no_training_to_be_calibrated(tmp_path: Path) -> None:
    artifact = taught(tmp_path, SINGLE)
    figures = {name: value for name, value in artifact.figures.items() if name != "distil"}
    done = Calibrate()(replace(artifact, figures=figures), Context(tmp_path / "out", tmp_path / "out"))
    assert set(done.figures["distil"]) == {"valid_score"}


def test_what_is_told_is_the_distance_on_valid(tmp_path: Path) -> None:
    artifact = taught(tmp_path, SINGLE)
    done = Calibrate()(artifact, Context(tmp_path / "out", tmp_path / "out"))
    texts = load_split(artifact.parts["data"], "valid").texts
    said = [
        torch.from_numpy(np.asarray(model.logits(model.encode(texts))))
        for model in (
            Classifier.load(done.parts[part], SINGLE, MAX_LENGTH) for part in ("student", "teacher")
        )
    ]
    assert done.figures["calibration"]["after"] == pytest.approx(float(logit_kl(*said).mean()), abs=1e-5)


def test_words_alone_are_left_as_they_are(tmp_path: Path) -> None:
    artifact = taught(tmp_path, TAGGED)
    assert Calibrate()(artifact, Context(tmp_path, tmp_path)) == artifact


@pytest.mark.parametrize("fields", [{"texts": 0}, {"spread": 0.0}])
def test_what_is_out_of_range_is_told(fields: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="allowed are 1 or more, and above 0"):
        Calibrate(**fields)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.distill.layers import Distill
from pocketlm.distill.losses import hidden_mse, logit_kl, logit_mse
from pocketlm.distill.teacher_outputs import Store, TeacherOutputs
from pocketlm.errors import RecipeError
from pocketlm.finetune import supervised, targets_of
from pocketlm.models.load import Classifier
from pocketlm.models.student import BuildStudent
from pocketlm.stage import Context
from pocketlm.task import Task
from pocketlm.tokenization.align import UNALIGNED, align
from pocketlm.train import Loss
from tests.tiny import KilledError
from tests.tiny_models import (
    BERT_LIKE,
    MANY,
    MAX_LENGTH,
    ON_WORDS,
    PAIR,
    SINGLE,
    VALUE,
    Architecture,
    classifier,
    prepared,
)

SMALL = BuildStudent(layers=2, intermediate_size=24, vocabulary=100)
WHOLE = BuildStudent(layers=3, vocabulary=None)
FAST = Distill(epochs=8, learning_rate=3e-3, batch_size=8, precision="fp32", warmup=0.0)


def context(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, folder)


def ready(
    folder: Path,
    architecture: Architecture = "bert",
    task: Task = SINGLE,
    student: BuildStudent = SMALL,
    outputs: TeacherOutputs | None = None,
) -> Artifact:
    """Everything that Distill is given."""
    classifier(architecture, task, layers=3).save(folder / "teacher")
    artifact = prepared(folder, task).with_part("teacher", folder / "teacher")
    artifact = student(artifact, context(folder / "build"))
    return (outputs or TeacherOutputs())(artifact, context(folder / "outputs"))


def loss_of(artifact: Artifact, stage: Distill, scale: float = 1.0) -> tuple[Loss, Classifier]:
    """The stage's loss, and the student in evaluation mode."""
    student = Classifier.load(artifact.parts["student"], artifact.task, MAX_LENGTH)
    examples = load_split(artifact.parts["data"], "train")
    loss = stage.loss(
        student, student.encode(examples.texts), Store.open(artifact.parts["teacher_outputs"]),
        targets_of(examples, artifact.task), scale,
    )  # fmt: skip
    return loss, student


def losses_of(
    artifact: Artifact, stage: Distill, rows: list[int], scale: float = 1.0
) -> tuple[torch.Tensor, Classifier]:
    """The losses of some examples, and the student."""
    loss, student = loss_of(artifact, stage, scale)
    with torch.no_grad():
        return loss(student.model, rows), student


@pytest.mark.parametrize("architecture", BERT_LIKE)
@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE, MANY, *ON_WORDS], ids=lambda task: task.kind)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    tmp_path: Path, architecture: Architecture, task: Task
) -> None:
    artifact = ready(tmp_path, architecture, task, WHOLE)
    losses, _ = losses_of(artifact, Distill(hidden=1.0, logits=1.0), list(range(24)))
    assert losses.shape == (24,)
    assert losses.abs().max() < 1e-4  # states are kept in float16


@pytest.mark.parametrize("architecture", BERT_LIKE)
@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE, MANY, *ON_WORDS], ids=lambda task: task.kind)
def test_padding_never_changes_a_loss(tmp_path: Path, architecture: Architecture, task: Task) -> None:
    artifact = ready(tmp_path, architecture, task)
    stage = Distill(hidden=0.7, logits=1.3, labels=0.5)
    loss, student = loss_of(artifact, stage, scale=2.0)
    with torch.no_grad():
        together = loss(student.model, range(12))
        alone = torch.cat([loss(student.model, [row]) for row in range(12)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert together.min() > 0


@pytest.mark.parametrize("task", [SINGLE, VALUE], ids=["single", "value"])
def test_the_loss_is_its_terms_by_hand(tmp_path: Path, task: Task) -> None:
    """From the teacher itself, run here, rather than from the store."""
    artifact = ready(tmp_path, task=task)
    stage = Distill(hidden=0.7, logits=1.3, labels=0.5, temperature=3.0)
    rows, scale = [3, 0, 8], 2.0 if task.kind == "regression" else 1.0
    losses, student = losses_of(artifact, stage, rows, scale)
    teacher = Classifier.load(artifact.parts["teacher"], task, MAX_LENGTH)
    examples = load_split(artifact.parts["data"], "train")
    own, theirs = student.encode(examples.texts), teacher.encode(examples.texts)
    for place, row in enumerate(rows):
        with torch.no_grad():
            said = student.model(**student.inputs(own, [row]), output_hidden_states=True)
            wanted = teacher.model(**teacher.inputs(theirs, [row]), output_hidden_states=True)
        aligned = align(own, theirs, row)
        known = [position for position, other in enumerate(aligned) if other != UNALIGNED]
        matched = [aligned[position] for position in known]
        hidden = torch.stack(
            [
                hidden_mse(
                    said.hidden_states[layer][:, known],
                    wanted.hidden_states[theirs_layer][:, matched],
                    torch.ones(1, len(known), dtype=torch.bool),
                )
                for layer, theirs_layer in ((0, 0), (1, 1), (2, 3))
            ]
        ).mean()
        target = torch.tensor([examples.labels[row]]) / scale
        if task.kind == "regression":
            logits = logit_mse(said.logits / scale, wanted.logits / scale)
        else:
            logits = logit_kl(said.logits, wanted.logits, 3.0)
        labels = supervised(said.logits / scale, target, task)
        by_hand = 0.7 * hidden + 1.3 * logits + 0.5 * labels
        assert float(losses[place]) == pytest.approx(float(by_hand), rel=2e-3)


@pytest.mark.parametrize("architecture", BERT_LIKE)
@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE], ids=["single", "pair", "value"])
def test_distillation_brings_the_student_nearer(
    tmp_path: Path, architecture: Architecture, task: Task
) -> None:
    artifact = ready(tmp_path, architecture, task)
    stage = FAST
    before, _ = losses_of(artifact, stage, list(range(24)))
    done = stage(artifact, context(tmp_path / "distil"))
    after, student = losses_of(done, stage, list(range(24)))
    curve = done.figures["distil"]["curve"]
    assert curve[-1]["train_loss"] < 0.8 * curve[0]["train_loss"]
    # The weights kept are those of the best valid score, which need not be the last.
    assert after.mean() < before.mean()
    assert len(curve) == 8
    assert done.figures["distil"]["valid_score"] == max(point["valid_score"] for point in curve)
    assert done.parts["student"] != artifact.parts["student"]
    assert done.parts["untrained_student"] == artifact.parts["student"]
    assert np.isfinite(student.logits(student.encode([("a", "b")[: 1 + task.pair]]))).all()


@pytest.mark.parametrize(
    ("stage", "zero"),
    [
        (Distill(hidden=1.0, logits=0.0), {"hidden"}),
        (Distill(hidden=0.0, logits=1.0), {"logits"}),
        (Distill(hidden=0.0, logits=0.0, labels=1.0), {"labels"}),
    ],
)
def test_terms_can_be_left_out(tmp_path: Path, stage: Distill, zero: set[str]) -> None:
    artifact = ready(tmp_path)
    whole, _ = losses_of(artifact, Distill(hidden=1.0, logits=1.0, labels=1.0), [0, 1])
    part, _ = losses_of(artifact, stage, [0, 1])
    rest = Distill(**{name: float(name not in zero) for name in ("hidden", "logits", "labels")})
    others, _ = losses_of(artifact, rest, [0, 1])
    assert torch.allclose(part + others, whole, rtol=1e-5)
    assert part.min() > 0


def test_logits_alone_need_no_hidden_states(tmp_path: Path) -> None:
    artifact = ready(tmp_path, outputs=TeacherOutputs(layer_map=()))
    done = Distill(hidden=0.0, epochs=1, precision="fp32")(artifact, context(tmp_path / "distil"))
    assert len(done.figures["distil"]["curve"]) == 1


def test_hidden_states_that_were_not_kept_are_missed(tmp_path: Path) -> None:
    artifact = ready(tmp_path, outputs=TeacherOutputs(layer_map=()))
    with pytest.raises(
        RecipeError, match=r"hidden=1\.0, but .* no hidden states \(layer_map: \[\]\); set hidden: 0"
    ):
        Distill(epochs=1, precision="fp32")(artifact, context(tmp_path / "distil"))


def test_the_teacher_is_never_run_again(tmp_path: Path) -> None:
    artifact = ready(tmp_path)
    for path in (tmp_path / "teacher").iterdir():
        path.unlink()
    (tmp_path / "teacher").rmdir()
    done = Distill(epochs=1, precision="fp32")(artifact, context(tmp_path / "distil"))
    assert done.parts["student"].is_dir()


def test_a_killed_distillation_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = ready(tmp_path)
    stage = Distill(epochs=2, batch_size=8, learning_rate=1e-3, precision="fp32", micro_batch=3)
    whole = stage(artifact, context(tmp_path / "whole"))
    monkeypatch.setattr("pocketlm.train.CHECKPOINT_SECONDS", 0.0)
    calls = 0

    def killing(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 25:
            raise KilledError
        return hidden_mse(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("pocketlm.distill.layers.hidden_mse", killing)
        with pytest.raises(KilledError):
            stage(artifact, context(tmp_path / "killed"))
    assert (tmp_path / "killed" / "checkpoint.safetensors").exists()
    resumed = stage(artifact, context(tmp_path / "killed"))
    assert resumed.figures == whole.figures
    one, two = ((done.parts["student"] / "model.safetensors").read_bytes() for done in (whole, resumed))
    assert one == two


@pytest.mark.parametrize(
    "values",
    [
        {"hidden": -1.0},
        {"logits": -0.5},
        {"labels": -0.1},
        {"hidden": 0.0, "logits": 0.0, "labels": 0.0},
        {"temperature": 0.0},
        {"temperature": -2.0},
    ],
)
def test_weights_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(RecipeError) as error:
        Distill(**values)
    for name, value in values.items():
        assert f"{name}={value}" in str(error.value)
    assert "weights must be 0 or more, one of them above 0, and the temperature above 0" in str(error.value)

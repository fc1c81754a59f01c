from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_pool, load_split, save_texts
from pocketlm.distill.inner import RIDGE
from pocketlm.distill.layers import Distill
from pocketlm.distill.losses import hidden_mse, logit_kl, logit_mse
from pocketlm.distill.teacher_outputs import Store, TeacherOutputs
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier
from pocketlm.models.student import BuildStudent
from pocketlm.progress import Quiet
from pocketlm.stage import Context
from pocketlm.supervised import supervised, targets_of
from pocketlm.tasks.task import Task
from pocketlm.tokenization.align import UNALIGNED, align
from pocketlm.train import Loss
from tests.easy import exact_outputs
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
    return (outputs or exact_outputs())(artifact, context(folder / "outputs"))


def loss_of(artifact: Artifact, stage: Distill, scale: float = 1.0) -> tuple[Loss, Classifier]:
    """The stage's loss, and the student in evaluation mode."""
    student = Classifier.load(artifact.parts["student"], artifact.task, MAX_LENGTH)
    pool, store = load_pool(artifact), Store.open(artifact.parts["teacher_outputs"])
    encoded = student.encode(pool.texts)
    terms = stage.terms(artifact, student, encoded, store)
    targets = targets_of(load_split(artifact.parts["data"], "train"), artifact.task)
    return stage.loss(student, encoded, store, targets, scale, terms), student


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
    artifact = ready(tmp_path, outputs=exact_outputs(states=()))
    done = Distill(hidden=0.0, epochs=1, precision="fp32")(artifact, context(tmp_path / "distil"))
    assert len(done.figures["distil"]["curve"]) == 1


def test_hidden_states_that_were_not_kept_are_missed(tmp_path: Path) -> None:
    artifact = ready(tmp_path, outputs=exact_outputs(states=()))
    with pytest.raises(
        RecipeError, match=r"hidden=1\.0 needs .* \[0, 1, 3\], and \[0, 1, 3\] were not kept; set states: "
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


INNER = exact_outputs(layer_inputs=True)
EVERYTHING = Distill(
    hidden=0.7, cosine=0.9, attention=1.1, relations=1.3, logits=1.5, labels=0.5, relation_heads=8
)


def alone(term: str, **fields: Any) -> Distill:
    """One term, of weight 1."""
    weights = dict.fromkeys(("hidden", "cosine", "attention", "relations", "logits", "labels"), 0.0)
    return Distill(**{**weights, term: 1.0}, **fields)


def of_another_shape(
    folder: Path,
    architecture: Architecture = "bert",
    teacher: Architecture = "bert",
    outputs: TeacherOutputs = INNER,
    layers: int = 2,
) -> Artifact:
    """A student of its own: narrower, with other heads, layers and pieces than the teacher."""
    artifact = ready(folder, teacher)
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 20}
    if architecture == "distilbert":
        sizes = {"dim": 24, "n_heads": 3}
    classifier(architecture, layers=layers, seed=5, **sizes).save(folder / "own")
    shape = {"layers": layers, "hidden_size": 24}
    artifact = artifact.with_part("student", folder / "own").with_figures(shape=shape)
    return outputs(artifact, context(folder / "again"))


@pytest.mark.parametrize("architecture", BERT_LIKE)
@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE], ids=["single", "pair", "value"])
def test_a_student_that_is_its_teacher_has_nothing_inside_to_learn(
    tmp_path: Path, architecture: Architecture, task: Task
) -> None:
    artifact = ready(tmp_path, architecture, task, WHOLE, INNER)
    stage = replace(EVERYTHING, labels=0.0)
    losses, _ = losses_of(artifact, stage, list(range(24)))
    assert losses.abs().max() < 1e-3  # states are kept in float16, and scores of these are large


@pytest.mark.parametrize("architecture", BERT_LIKE)
@pytest.mark.parametrize("task", [SINGLE, PAIR], ids=["single", "pair"])
def test_padding_never_changes_an_inner_loss(tmp_path: Path, architecture: Architecture, task: Task) -> None:
    artifact = ready(tmp_path, architecture, task, outputs=INNER)
    loss, student = loss_of(artifact, EVERYTHING)
    with torch.no_grad():
        together = loss(student.model, range(12))
        each = torch.cat([loss(student.model, [row]) for row in range(12)])
    assert torch.allclose(together, each, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("term", ["hidden", "cosine", "attention", "relations", "logits", "labels"])
def test_the_loss_is_the_sum_of_its_terms(tmp_path: Path, term: str) -> None:
    artifact = ready(tmp_path, outputs=INNER)
    whole, _ = losses_of(artifact, EVERYTHING, [0, 1, 5])
    rest, _ = losses_of(artifact, replace(EVERYTHING, **{term: 0.0}), [0, 1, 5])
    part, _ = losses_of(artifact, alone(term, relation_heads=8), [0, 1, 5])
    assert part.min() > 0
    assert torch.allclose(whole, rest + getattr(EVERYTHING, term) * part, rtol=1e-4)


@pytest.mark.parametrize("term", ["hidden", "cosine", "relations", "logits"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_a_student_of_another_shape_learns(tmp_path: Path, term: str, architecture: Architecture) -> None:
    """Another width, number of heads, depth, type and vocabulary than the teacher's."""
    artifact = of_another_shape(tmp_path, architecture, "roberta", layers=1)
    assert artifact.figures["teacher_states"] == [0, 2, 3]
    stage = alone(term, epochs=6, learning_rate=3e-3, batch_size=8, precision="fp32", warmup=0.0)
    done = stage(artifact, context(tmp_path / "distil"))
    losses = [point["train_loss"] for point in done.figures["distil"]["curve"]]
    assert losses[-1] < 0.97 * losses[0]


def test_a_projection_starts_at_the_ridge_fit(tmp_path: Path) -> None:
    artifact = of_another_shape(tmp_path)
    student = Classifier.load(artifact.parts["student"], artifact.task, MAX_LENGTH)
    encoded = student.encode(load_pool(artifact).texts)
    store = Store.open(artifact.parts["teacher_outputs"])
    terms = Distill().terms(artifact, student, encoded, store)
    assert [one.weight.shape for one in terms.projections] == [(32, 24)] * 3
    with torch.no_grad():
        states = student.model.base_model(
            **student.inputs(encoded, range(24)), output_hidden_states=True
        ).hidden_states
    said = store.states_of(range(24), [0, 1, 3])
    for place, other in enumerate((0, 1, 3)):
        x, y = states[place][said.mask], said.values[other][said.mask]
        # Ridge regression is least squares with rows more, which pull every weight towards 0.
        pull = (RIDGE * x.square().sum(dim=0).mean()).sqrt() * torch.eye(24)
        best = torch.linalg.lstsq(torch.cat([x, pull]).double(), torch.cat([y, torch.zeros(24, 32)]).double())
        weight = terms.projections[place].get_parameter("weight")
        assert torch.allclose(weight.T.double(), best.solution, atol=1e-4)
        with torch.no_grad():
            distance = (terms.projected(states, place)[said.mask] - y).square().sum()
        assert distance < 0.5 * y.square().sum()


def test_states_kept_in_the_students_width_need_no_projection(tmp_path: Path) -> None:
    artifact = of_another_shape(tmp_path, outputs=exact_outputs(width=24))
    student = Classifier.load(artifact.parts["student"], artifact.task, MAX_LENGTH)
    encoded = student.encode(load_pool(artifact).texts)
    store = Store.open(artifact.parts["teacher_outputs"])
    assert not len(Distill().terms(artifact, student, encoded, store).projections)
    assert len(Distill(project=True).terms(artifact, student, encoded, store).projections) == 3
    assert len(alone("cosine", project=True).terms(artifact, student, encoded, store).projections) == 1
    with pytest.raises(
        RecipeError, match=r"project=False, but the student's states have 24 .* 32; set project: null"
    ):
        artifact = of_another_shape(tmp_path / "wide")
        Distill(project=False)(artifact, context(tmp_path / "distil"))


def test_texts_without_a_label_count_in_all_but_the_labels(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    artifact = ready(tmp_path)
    save_texts([("a film",), ("",), ("naïve 日本 😀",)], artifact.parts["data"] / "unlabeled.jsonl")
    artifact = exact_outputs()(artifact, context(folder))
    rows = [2, 25, 0, 24, 26]
    labels, _ = losses_of(artifact, alone("labels"), rows)
    assert (labels > 0).tolist() == [True, False, True, False, False]
    by_hand, _ = losses_of(artifact, alone("labels"), [2, 0])
    assert torch.allclose(labels[[0, 2]], by_hand, rtol=1e-5)
    none, _ = losses_of(artifact, alone("labels"), [24, 25])
    assert none.tolist() == [0, 0]
    logits, _ = losses_of(artifact, alone("logits"), rows)
    assert logits.min() > 0
    done = Distill(epochs=1, labels=1.0, precision="fp32")(artifact, context(tmp_path / "distil"))
    assert done.parts["student"].is_dir()


def test_logits_may_be_compared_by_their_squares(tmp_path: Path) -> None:
    artifact = ready(tmp_path)
    losses, student = losses_of(artifact, alone("logits", logit_loss="mse"), [3])
    said = student.logits(student.encode(load_pool(artifact).texts))[3]
    wanted = Store.open(artifact.parts["teacher_outputs"]).logits[3]
    assert float(losses[0]) == pytest.approx(float(((said - wanted) ** 2).mean()), rel=1e-4)


def test_the_inside_may_be_learnt_first(tmp_path: Path) -> None:
    artifact = ready(tmp_path, outputs=INNER)
    stage = replace(FAST, inner_epochs=6, epochs=2, attention=0.5, relations=1.0)
    done = stage(artifact, context(tmp_path / "distil"))
    curve = done.figures["distil"]["inner_curve"]
    assert len(curve) == 6 and len(done.figures["distil"]["curve"]) == 2
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
    # Of a phase without a score on the task, the least loss is the best.
    assert max(point["valid_score"] for point in curve) <= 0
    assert not list((tmp_path / "distil").glob("inner*.safetensors*"))


@pytest.mark.parametrize("at", [4, 11])
def test_a_run_killed_in_either_phase_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """24 texts in batches of 8: 6 steps of the inside, then 6 on all; killed within each."""
    artifact = of_another_shape(tmp_path)
    stage = Distill(
        epochs=2, inner_epochs=2, relations=1.0, batch_size=8, learning_rate=1e-3, precision="fp32"
    )
    whole = stage(artifact, context(tmp_path / "whole"))
    monkeypatch.setattr("pocketlm.train.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KilledError):
        stage(artifact, Context(tmp_path / "killed", tmp_path / "killed", KilledAt(at)))
    assert (tmp_path / "killed" / "inner.safetensors").exists() == (at > 6)
    resumed = stage(artifact, context(tmp_path / "killed"))
    assert resumed.figures == whole.figures
    one, two = ((done.parts["student"] / "model.safetensors").read_bytes() for done in (whole, resumed))
    assert one == two


class KilledAt(Quiet):
    """Stops the run after so many steps, whatever they are of."""

    def __init__(self, step: int) -> None:
        self.left = step

    @contextmanager
    def task(self, description: str, total: int, done: int = 0):
        def advance(steps: int) -> None:
            self.left -= steps
            if self.left <= 0:
                raise KilledError

        yield advance


@pytest.mark.parametrize(
    ("stage", "states"),
    [
        (alone("attention"), [0, 2]),
        (alone("relations"), [2]),
        (alone("cosine", layer_map=(0, 1, 2)), [2]),
    ],
)
def test_inner_terms_tell_which_states_they_need(tmp_path: Path, stage: Distill, states: list[int]) -> None:
    artifact = ready(tmp_path, outputs=exact_outputs(states=()))
    with pytest.raises(RecipeError, match=rf"needs the teacher's states {re.escape(str(states))}"):
        stage(artifact, context(tmp_path / "distil"))
    artifact = exact_outputs(states=tuple(states))(artifact, context(tmp_path / "right"))
    done = replace(stage, epochs=1, precision="fp32")(artifact, context(tmp_path / "distil"))
    assert done.parts["student"].is_dir()


@pytest.mark.parametrize("layers", [(2, 0), (0, 3), (-1, 0)])
def test_relation_layers_that_are_not_there_are_refused(tmp_path: Path, layers: tuple[int, int]) -> None:
    artifact = ready(tmp_path, outputs=INNER)
    with pytest.raises(
        RecipeError, match=r"give a layer of the student, 0 to 1, and one of the teacher, 0 to 2"
    ):
        alone("relations", relation_layers=layers)(artifact, context(tmp_path / "distil"))


@pytest.mark.parametrize("stage", [{"inner_epochs": -1}, {"inner_epochs": 2, "hidden": 0.0}])
def test_an_inner_phase_without_anything_inside_is_refused(stage: dict[str, Any]) -> None:
    with pytest.raises(
        RecipeError, match=r"inner_epochs=.* is out of range; allowed: 0, or more with a weight"
    ):
        Distill(**stage)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden": -1.0},
        {"cosine": -1.0},
        {"attention": -1.0},
        {"relations": -1.0},
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

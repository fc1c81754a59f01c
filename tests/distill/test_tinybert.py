from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_pool, load_split, save_texts
from pocketlm.distill.losses import logit_kl
from pocketlm.distill.online import Online
from pocketlm.distill.teacher_outputs import Store, TeacherOutputs
from pocketlm.distill.tinybert import (
    GeneralDistill,
    Mapping,
    TinyBert,
    Weights,
    mapping_of,
    take_projections,
    transformer_loss,
)
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier
from pocketlm.models.student import BuildStudent
from pocketlm.progress import Quiet
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from pocketlm.train import Loss
from tests.easy import exact_outputs
from tests.tiny import KilledError
from tests.tiny_models import BERT_LIKE, MAX_LENGTH, PAIR, SINGLE, VALUE, Architecture, classifier, prepared

INNER = exact_outputs(layer_inputs=True)
FAST = TinyBert(
    epochs_intermediate=6, epochs_prediction=4, learning_rate_intermediate=3e-3,
    learning_rate_prediction=3e-3, batch_size=8, precision="fp32", warmup=0.0,
)  # fmt: skip
GENERAL = GeneralDistill(epochs=6, learning_rate=3e-3, batch_size=8, precision="fp32", warmup=0.0)


def context(folder: Path, progress: Any = None) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, folder, progress or Quiet())


def ready(
    folder: Path,
    architecture: Architecture = "bert",
    task: Task = SINGLE,
    outputs: TeacherOutputs | None = INNER,
    narrow: bool = True,
) -> Artifact:
    """All that the stages are given; the student is narrower than the teacher, of as many heads."""
    classifier(architecture, task, layers=4).save(folder / "teacher")
    artifact = prepared(folder, task).with_part("teacher", folder / "teacher")
    artifact = artifact.with_part("teacher_source", folder / "teacher")
    if narrow:
        # Another architecture than the teacher's has other pieces too.
        classifier("bert", task, layers=2, seed=3, hidden_size=24).save(folder / "student")
        artifact = artifact.with_part("student", folder / "student").with_figures(shape={"layers": 2})
    else:
        student = BuildStudent(layers=4, vocabulary=None)
        artifact = student(artifact, context(folder / "built"))
    return artifact if outputs is None else outputs(artifact, context(folder / "outputs"))


def student_of(artifact: Artifact) -> Classifier:
    return Classifier.load(artifact.parts["student"], artifact.task, MAX_LENGTH)


def stage_1(artifact: Artifact, stage: TinyBert) -> tuple[Loss, Classifier, nn.ModuleList]:
    student = student_of(artifact)
    encoded = student.encode(load_pool(artifact).texts)
    store = Store.open(artifact.parts["teacher_outputs"])
    loss, projections = stage.stage_1(artifact, student, encoded, store)
    return loss, student, projections


def losses_of(artifact: Artifact, stage: TinyBert, rows: list[int]) -> Tensor:
    loss, student, _ = stage_1(artifact, stage)
    with torch.no_grad():
        return loss(student.model, rows)


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    tmp_path: Path, architecture: Architecture
) -> None:
    artifact = ready(tmp_path, architecture, narrow=False)
    loss, student, projections = stage_1(artifact, TinyBert())
    with torch.no_grad():
        for projection in projections:
            projection.get_parameter("weight").copy_(torch.eye(32))
        assert loss(student.model, range(24)).abs().max() < 1e-3  # states are kept in float16


def test_the_loss_is_equation_11_by_hand(tmp_path: Path) -> None:
    """From both models, run one text at a time; g(m) is (0, 2, 4), so layers 1 and 3 attend."""
    artifact = ready(tmp_path)
    weights = {"embedding": 0.5, "hidden": 0.7, "attention": 0.9}
    loss, student, projections = stage_1(artifact, TinyBert(**weights))
    teacher = Classifier.load(artifact.parts["teacher"], SINGLE, MAX_LENGTH)
    texts = load_pool(artifact).texts
    own, theirs = student.encode(texts), teacher.encode(texts)
    assert own.ids == theirs.ids

    def scores(layer: Any, state: Tensor) -> Tensor:
        query, key = (
            one(state).unflatten(-1, (4, -1)).transpose(1, 2)
            for one in (layer.attention.self.query, layer.attention.self.key)
        )
        return query @ key.transpose(2, 3) / query.shape[-1] ** 0.5

    for row in (0, 7):
        with torch.no_grad():
            ours = student.model.base_model(**student.inputs(own, [row]), output_hidden_states=True)
            wanted = teacher.model.base_model(**teacher.inputs(theirs, [row]), output_hidden_states=True)
            states = [ours.hidden_states, wanted.hidden_states]
            embedding = F.mse_loss(projections[0](states[0][0]), states[1][0])
            hidden = sum(F.mse_loss(projections[m](states[0][m]), states[1][2 * m]) for m in (1, 2))
            attention = sum(
                F.mse_loss(
                    scores(student.model.base_model.encoder.layer[m], states[0][m]),
                    scores(teacher.model.base_model.encoder.layer[2 * m + 1], states[1][2 * m + 1]),
                )
                for m in (0, 1)
            )
            found = loss(student.model, [row])
        assert float(found) == pytest.approx(
            float(0.5 * embedding + 0.7 * hidden + 0.9 * attention), rel=2e-3
        )


@pytest.mark.parametrize("architecture", BERT_LIKE)
@pytest.mark.parametrize("task", [SINGLE, PAIR], ids=["single", "pair"])
@pytest.mark.parametrize("online", [False, True])
def test_padding_never_changes_the_loss(
    tmp_path: Path, architecture: Architecture, task: Task, online: bool
) -> None:
    artifact = ready(tmp_path, architecture, task)
    loss, student, _ = stage_1(artifact, TinyBert(online=online))
    with torch.no_grad():
        together = loss(student.model, range(12))
        each = torch.cat([loss(student.model, [row]) for row in range(12)])
    assert torch.allclose(together, each, rtol=1e-4)


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_stored_states_say_what_the_teacher_does(tmp_path: Path, architecture: Architecture) -> None:
    artifact = ready(tmp_path, architecture)
    rows = list(range(24))
    stored, online = (losses_of(artifact, TinyBert(online=online), rows) for online in (False, True))
    assert torch.allclose(stored, online, rtol=5e-3)


def test_the_loss_is_the_sum_of_its_terms(tmp_path: Path) -> None:
    artifact = ready(tmp_path)
    off = {"embedding": 0.0, "hidden": 0.0, "attention": 0.0}
    each = [losses_of(artifact, TinyBert(**{**off, name: 1.0}), [0, 5]) for name in off]
    assert all(one.min() > 0 for one in each)
    assert torch.allclose(losses_of(artifact, TinyBert(), [0, 5]), sum(each, torch.zeros(2)), rtol=1e-5)


@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE], ids=["single", "pair", "value"])
def test_both_stages_bring_the_student_nearer(tmp_path: Path, task: Task) -> None:
    artifact = ready(tmp_path, "roberta", task)
    done = FAST(artifact, context(tmp_path / "tinybert"))
    figures = done.figures["distil"]
    inner, curve = ([point["train_loss"] for point in figures[name]] for name in ("inner_curve", "curve"))
    assert len(inner) == 6 and len(curve) == 4
    assert inner[-1] < 0.9 * inner[0] and curve[-1] < curve[0]
    assert figures["valid_score"] == pytest.approx(max(point["valid_score"] for point in figures["curve"]))
    assert not list((tmp_path / "tinybert").glob("inner*.safetensors*"))


def test_stage_2_is_equation_10_up_to_the_teachers_entropy(tmp_path: Path) -> None:
    artifact = ready(tmp_path, outputs=exact_outputs(states=()))
    student = student_of(artifact)
    encoded = student.encode(load_pool(artifact).texts)
    store = Store.open(artifact.parts["teacher_outputs"])
    loss = TinyBert(temperature=2.0, prediction=3.0).stage_2(student, encoded, store, 1.0)
    with torch.no_grad():
        found = loss(student.model, [4, 9])
    logits = torch.from_numpy(student.logits(encoded)[[4, 9]])
    teacher = torch.from_numpy(store.logits[[4, 9]])
    assert torch.allclose(found, 3 * logit_kl(logits, teacher, 2.0), rtol=1e-4)
    soft = (teacher / 2).softmax(-1)
    cross = F.cross_entropy(logits / 2, soft, reduction="none")
    assert torch.allclose(found / 12, cross + (soft * soft.log()).sum(-1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "curves"),
    [
        ({"epochs_intermediate": 0}, (0, 4)),
        ({"embedding": 0.0, "hidden": 0.0, "attention": 0.0}, (0, 4)),
        ({"prediction": 0.0}, (6, 0)),
        ({"attention": 0.0}, (6, 4)),
    ],
)
def test_a_stage_can_be_left_out(tmp_path: Path, fields: dict[str, Any], curves: tuple[int, int]) -> None:
    outputs = exact_outputs(states=()) if curves[0] == 0 else INNER
    artifact = ready(tmp_path, outputs=outputs)
    done = replace(FAST, **fields)(artifact, context(tmp_path / "tinybert"))
    figures = done.figures["distil"]
    assert (len(figures["inner_curve"]), len(figures["curve"])) == curves
    valid = load_split(artifact.parts["data"], "valid")
    said = student_of(done).logits(student_of(done).encode(valid.texts)).argmax(1)
    assert figures["valid_score"] == pytest.approx((said == np.asarray(valid.labels)).mean())


def test_online_needs_no_states(tmp_path: Path) -> None:
    artifact = ready(tmp_path, outputs=exact_outputs(states=()))
    done = replace(FAST, online=True, epochs_intermediate=1)(artifact, context(tmp_path / "tinybert"))
    assert len(done.figures["distil"]["inner_curve"]) == 1
    with pytest.raises(
        RecipeError, match=r"stage 1 of tinybert needs .* \[0, 1, 2, 3, 4\], and .* were not kept"
    ):
        FAST(artifact, context(tmp_path / "stored"))


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


@pytest.mark.parametrize("at", [2, 6, 7, 9])
def test_a_run_killed_anywhere_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """24 texts in batches of 8: 6 steps of stage 1, then 6 of stage 2."""
    artifact = ready(tmp_path)
    stage = replace(FAST, epochs_intermediate=2, epochs_prediction=2)
    whole = stage(artifact, context(tmp_path / "whole"))
    monkeypatch.setattr("pocketlm.train.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KilledError):
        stage(artifact, context(tmp_path / "killed", KilledAt(at)))
    assert (tmp_path / "killed" / "inner.safetensors").exists() == (at > 6)
    resumed = stage(artifact, context(tmp_path / "killed"))
    assert resumed.figures == whole.figures
    one, two = ((done.parts["student"] / "model.safetensors").read_bytes() for done in (whole, resumed))
    assert one == two


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_general_distillation_then_the_task(tmp_path: Path, architecture: Architecture) -> None:
    artifact = ready(tmp_path, architecture, outputs=None)
    general = GENERAL(artifact, context(tmp_path / "general"))
    losses = [point["train_loss"] for point in general.figures["tinybert_general"]["curve"]]
    assert losses[-1] < 0.9 * losses[0] and general.figures["tinybert_general"]["texts"] == 24
    assert general.parts["student"] != artifact.parts["student"]
    task = INNER(general, context(tmp_path / "outputs"))
    # Its projections are where the task's start: nearer than with new ones.
    with_them = losses_of(task, TinyBert(), list(range(24))).mean()
    parts = {name: part for name, part in task.parts.items() if name != "projections"}
    assert with_them < losses_of(replace(task, parts=parts), TinyBert(), list(range(24))).mean()
    done = replace(FAST, epochs_intermediate=1, epochs_prediction=1)(task, context(tmp_path / "tinybert"))
    assert done.parts["student"].is_dir()


def test_general_distillation_leaves_the_head_alone(tmp_path: Path) -> None:
    artifact = ready(tmp_path, outputs=None)
    before, after = student_of(artifact), student_of(GENERAL(artifact, context(tmp_path / "general")))
    one, two = before.model.state_dict(), after.model.state_dict()
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"} <= same
    assert "bert.encoder.layer.1.output.dense.weight" not in same


def test_general_distillation_reads_a_corpus_and_not_the_data(tmp_path: Path) -> None:
    artifact = ready(tmp_path, outputs=None)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a film\n\nnaïve café 日本 😀\na film\nthe plot\n", encoding="utf-8")
    done = replace(GENERAL, epochs=1)(
        artifact.with_part("corpus_source", corpus), context(tmp_path / "general")
    )
    assert done.figures["tinybert_general"]["texts"] == 3


def test_a_killed_general_distillation_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = ready(tmp_path, outputs=None)
    stage = replace(GENERAL, epochs=2)
    whole = stage(artifact, context(tmp_path / "whole"))
    monkeypatch.setattr("pocketlm.train.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KilledError):
        stage(artifact, context(tmp_path / "killed", KilledAt(4)))
    resumed = stage(artifact, context(tmp_path / "killed"))
    for name in ("student/model.safetensors", "projections.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert resumed.figures == whole.figures


def test_the_pool_is_distilled_not_train_alone(tmp_path: Path) -> None:
    artifact = ready(tmp_path, outputs=None)
    save_texts([("a film",), ("",)], artifact.parts["data"] / "unlabeled.jsonl")
    artifact = INNER(artifact, context(tmp_path / "outputs"))
    for online in (False, True):
        assert losses_of(artifact, TinyBert(online=online), [25, 24, 0]).min() > 0
    assert (
        replace(GENERAL, epochs=1)(artifact, context(tmp_path / "general")).figures["tinybert_general"][
            "texts"
        ]
        == 26
    )


def test_projections_of_another_shape_are_not_taken(tmp_path: Path) -> None:
    from pocketlm.distill.inner import projections_of
    from pocketlm.train import save_tensors

    student = classifier(hidden_size=24).model
    learnt, new = projections_of(student, 3, 32, seed=1), projections_of(student, 3, 32, seed=2)
    save_tensors(learnt.state_dict(), tmp_path / "projections.safetensors")
    assert take_projections(new, tmp_path / "projections.safetensors")
    assert torch.equal(new[1].get_parameter("weight"), learnt[1].get_parameter("weight"))
    other = projections_of(student, 3, 16, seed=2)
    assert not take_projections(other, tmp_path / "projections.safetensors")


def test_heads_have_to_agree_unless_attention_is_left_out() -> None:
    student, teacher = classifier(layers=2, num_attention_heads=2), classifier(layers=4)
    with pytest.raises(RecipeError, match="give the student 4 heads, or set attention: 0"):
        mapping_of(student.model, teacher.model, (0, 2, 4), True, 32, 0)
    mapping = mapping_of(student.model, teacher.model, (0, 2, 4), False, 32, 0)
    assert isinstance(mapping, Mapping) and mapping.states == [0, 2, 4]
    encoded = student.encode([("a film",)])
    online = Online(teacher, teacher.encode([("a film",)]), encoded)
    loss = transformer_loss(student, encoded, online, mapping, Weights(attention=0.0))
    assert loss(student.model, [0]).shape == (1,)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"embedding": -1.0}, "embedding=-1.0, hidden=1.0, attention=1.0, prediction=1.0: weights must be 0"),
        ({"temperature": 0.0}, "temperature=0.0 is out of range"),
        ({"epochs_intermediate": -1}, "epochs_intermediate=-1 is out of range"),
        ({"epochs_prediction": 0}, "epochs=0 is out of range"),
        ({"learning_rate_intermediate": 0.0}, "learning_rate=0.0 is out of range"),
        ({"epochs_intermediate": 0, "prediction": 0.0}, "leave nothing to train"),
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        TinyBert(**fields)
    assert told in str(error.value)


def test_general_weights_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"embedding=0\.0, hidden=0\.0, attention=0\.0: weights must be"):
        GeneralDistill(embedding=0.0, hidden=0.0, attention=0.0)

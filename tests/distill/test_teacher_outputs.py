from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.distill.teacher_outputs import Store, TeacherOutputs, compute
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier
from pocketlm.models.student import BuildStudent
from pocketlm.progress import Quiet
from pocketlm.stage import Context
from pocketlm.task import Task
from pocketlm.tokenization.align import UNALIGNED, align
from pocketlm.tokenization.encode import encode
from tests.tiny import KilledError
from tests.tiny_models import BERT_LIKE, MAX_LENGTH, PAIR, SINGLE, VALUE, Architecture, classifier, prepared

STUDENT = BuildStudent(layers=2, intermediate_size=24, vocabulary=100)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, and more than one save, of 24 texts."""
    monkeypatch.setattr("pocketlm.distill.teacher_outputs.EVALUATION_BATCH", 5)
    monkeypatch.setattr("pocketlm.distill.teacher_outputs.SAVE_EVERY_BATCHES", 2)


def with_student(
    folder: Path, architecture: Architecture = "bert", task: Task = SINGLE, max_length: int = MAX_LENGTH
) -> Artifact:
    classifier(architecture, task, layers=3, max_length=max_length).save(folder / "teacher")
    artifact = (
        prepared(folder, task).with_part("teacher", folder / "teacher").with_figures(max_length=max_length)
    )
    return STUDENT(artifact, context(folder / "student"))


def context(folder: Path, progress: Any = None) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, folder, progress or Quiet())


def both(artifact: Artifact) -> tuple[Classifier, Classifier]:
    length = artifact.figures["max_length"]
    return (
        Classifier.load(artifact.parts["teacher"], artifact.task, length),
        Classifier.load(artifact.parts["student"], artifact.task, length),
    )


@pytest.mark.parametrize("architecture", BERT_LIKE)
@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE], ids=["single", "pair", "value"])
def test_the_store_holds_what_the_teacher_says(
    tmp_path: Path, architecture: Architecture, task: Task
) -> None:
    artifact = with_student(tmp_path, architecture, task)
    done = TeacherOutputs()(artifact, context(tmp_path / "outputs"))
    # Layers 3 of the teacher cut to 2: its layers 0 and 2.
    assert artifact.figures["shape"]["teacher_layers"] == [0, 2]
    assert done.figures["layer_map"] == [0, 1, 3]
    store = Store.open(done.parts["teacher_outputs"])
    teacher, student = both(artifact)
    texts = load_split(artifact.parts["data"], "train").texts
    encoded, own = teacher.encode(texts), student.encode(texts)
    assert store.offsets.tolist() == np.cumsum([0, *own.lengths]).tolist()
    finer = 0
    for index in range(len(texts)):
        with torch.no_grad():
            output = teacher.model(**teacher.inputs(encoded, [index]), output_hidden_states=True)
        assert np.allclose(store.logits[index], output.logits[0].numpy(), atol=1e-5)
        aligned = align(own, encoded, index)
        states, mask = store.hidden_of([index])
        assert mask[0].tolist() == [position != UNALIGNED for position in aligned]
        for place, position in enumerate(aligned):
            if position != UNALIGNED:
                wanted = torch.stack([output.hidden_states[layer][0, position] for layer in (0, 1, 3)])
                assert torch.allclose(states[0, place], wanted, atol=4e-3, rtol=1e-3)
        finer += len(aligned) > encoded.lengths[index]
    assert finer > 0


def test_a_batch_of_states_is_padded_as_the_students_inputs_are(tmp_path: Path) -> None:
    artifact = with_student(tmp_path, max_length=80)
    store = Store.open(TeacherOutputs()(artifact, context(tmp_path / "outputs")).parts["teacher_outputs"])
    _, student = both(artifact)
    encoded = student.encode(load_split(artifact.parts["data"], "train").texts)
    rows = [7, 2, 11, 2]
    assert len({encoded.lengths[row] for row in rows}) > 1
    states, mask = store.hidden_of(rows)
    inputs = student.inputs(encoded, rows)
    assert states.shape == (*inputs["input_ids"].shape, 3, 32)
    assert states.dtype == torch.float32 and mask.dtype == torch.bool
    assert not (mask & (inputs["attention_mask"] == 0)).any()
    for place, row in enumerate(rows):
        alone, its_mask = store.hidden_of([row])
        length = encoded.lengths[row]
        assert torch.equal(states[place, :length], alone[0])
        assert torch.equal(mask[place, :length], its_mask[0])
        assert not states[place, length:].any() and not mask[place, length:].any()


def test_pieces_beyond_the_teachers_cut_are_unknown(tmp_path: Path) -> None:
    """A student that reads further than its teacher did is told nothing of what lies there."""
    teacher = classifier()
    texts = [("a quiet film of the plot",), ("a film",)]
    cut, own = encode(teacher.tokenizer, texts, 5), teacher.encode(texts)
    compute(teacher, cut, own, (0, 3), context(tmp_path))
    store = Store.open(tmp_path)
    assert store.known.tolist() == [True] * 4 + [False] * 3 + [True] * 5
    states, mask = store.hidden_of([1, 0])
    assert mask.tolist() == [[True] * 4 + [False] * 4, [True] * 4 + [False] * 3 + [True]]
    with torch.no_grad():
        wanted = teacher.model(**teacher.inputs(cut, [0]), output_hidden_states=True).hidden_states[3][0]
    # [CLS] a quiet film, and the [SEP] that stands behind the cut.
    assert torch.allclose(states[1, [0, 1, 2, 3, 7], 1], wanted, atol=4e-3, rtol=1e-3)


class KilledAt(Quiet):
    """Stops the run after some batches."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    @contextmanager
    def task(self, description: str, total: int, done: int = 0):
        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            if done >= self.batch:
                raise KilledError

        yield advance


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_killed_run_ends_with_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    artifact = with_student(tmp_path)
    whole = TeacherOutputs()(artifact, context(tmp_path / "whole"))
    with pytest.raises(KilledError):
        TeacherOutputs()(artifact, context(tmp_path / "killed", KilledAt(batch)))
    saved = json.loads((tmp_path / "killed" / "done.json").read_text()) if batch > 1 else 0
    assert saved == {1: 0, 2: 2, 3: 2, 5: 5}[batch]
    # What was not saved may be lost: the batches behind the mark are made again.
    asked: list[int] = []
    forward = Classifier.inputs
    monkeypatch.setattr(
        Classifier,
        "inputs",
        lambda self, encoded, rows: (asked.extend(rows), forward(self, encoded, rows))[1],
    )
    resumed = TeacherOutputs()(artifact, context(tmp_path / "killed"))
    assert len(asked) == 24 - 5 * saved if saved < 5 else not asked
    for name in ("logits", "hidden", "known", "offsets"):
        one, two = (
            np.load(place.parts["teacher_outputs"] / f"{name}.npy", mmap_mode="r")
            for place in (whole, resumed)
        )
        assert np.array_equal(one, two), name


def test_a_half_made_array_is_made_anew(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    whole = Store.open(TeacherOutputs()(artifact, context(tmp_path / "whole")).parts["teacher_outputs"])
    for content in (b"", b"\x93NUMPY", (tmp_path / "whole" / "hidden.npy").read_bytes()[:200]):
        folder = tmp_path / "half"
        place = context(folder)
        (folder / "hidden.npy").write_bytes(content)
        again = Store.open(TeacherOutputs()(artifact, place).parts["teacher_outputs"])
        assert np.array_equal(again.hidden, whole.hidden)
        for path in folder.iterdir():
            path.unlink()


def test_a_finished_store_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = with_student(tmp_path)
    first = TeacherOutputs()(artifact, context(tmp_path / "outputs"))

    def never(*_: object) -> None:
        raise AssertionError("the teacher was run again")

    monkeypatch.setattr(Classifier, "inputs", never)
    assert TeacherOutputs()(artifact, context(tmp_path / "outputs")) == first


def test_an_empty_map_stores_logits_only(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    done = TeacherOutputs(layer_map=())(artifact, context(tmp_path / "outputs"))
    store = Store.open(done.parts["teacher_outputs"])
    teacher, _ = both(artifact)
    texts = load_split(artifact.parts["data"], "train").texts
    assert np.allclose(store.logits, teacher.logits(teacher.encode(texts)), atol=1e-5)
    assert store.hidden.shape[1] == 0
    assert done.figures["layer_map"] == []


def test_a_map_of_ones_own(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    default = Store.open(TeacherOutputs()(artifact, context(tmp_path / "a")).parts["teacher_outputs"])
    own = Store.open(TeacherOutputs((3, 0, 0))(artifact, context(tmp_path / "b")).parts["teacher_outputs"])
    assert np.array_equal(own.hidden[:, 0], default.hidden[:, 2])
    assert np.array_equal(own.hidden[:, 1], default.hidden[:, 0])
    assert np.array_equal(own.hidden[:, 2], default.hidden[:, 0])


@pytest.mark.parametrize("layer_map", [(0, 1), (0, 1, 2, 3), (0, 1, 4), (-1, 1, 2)])
def test_a_map_that_does_not_fit_is_refused(tmp_path: Path, layer_map: tuple[int, ...]) -> None:
    artifact = with_student(tmp_path)
    with pytest.raises(RecipeError) as error:
        TeacherOutputs(layer_map)(artifact, context(tmp_path / "outputs"))
    assert str(error.value) == (
        f"layer_map={list(layer_map)} does not fit: give one of the teacher's states 0 to 3 for the "
        "student's embeddings and for each of its 2 layers"
    )


def test_the_teacher_is_asked_without_dropout(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    made = classifier(layers=3, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    made.save(tmp_path / "dropping")
    stores = [
        Store.open(TeacherOutputs()(given, context(tmp_path / name)).parts["teacher_outputs"])
        for name, given in (
            ("plain", artifact),
            ("other", replace(artifact).with_part("teacher", tmp_path / "dropping")),
        )
    ]
    assert np.array_equal(stores[0].logits, stores[1].logits)

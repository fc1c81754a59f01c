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
from pocketlm.data.examples import load_split, save_texts
from pocketlm.distill.teacher_outputs import Store, compute
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier
from pocketlm.models.student import BuildStudent
from pocketlm.progress import Quiet
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from pocketlm.tokenization.align import UNALIGNED, align
from pocketlm.tokenization.encode import encode
from tests.easy import exact_outputs
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
    done = exact_outputs()(artifact, context(tmp_path / "outputs"))
    # Layers 3 of the teacher cut to 2: its layers 0 and 2.
    assert artifact.figures["shape"]["teacher_layers"] == [0, 2]
    assert done.figures["teacher_states"] == [0, 1, 3]
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
        said = store.states_of([index], (3, 0, 1))
        assert said.positions[0].tolist() == aligned and not said.bases
        assert said.mask[0].tolist() == [position != UNALIGNED for position in aligned]
        for place, position in enumerate(aligned):
            for state in (0, 1, 3):
                if position != UNALIGNED:
                    wanted = output.hidden_states[state][0, position]
                    assert torch.allclose(said.values[state][0, place], wanted, atol=4e-3, rtol=1e-3)
        finer += len(aligned) > encoded.lengths[index]
    assert finer > 0


def test_a_batch_of_states_is_padded_as_the_students_inputs_are(tmp_path: Path) -> None:
    artifact = with_student(tmp_path, max_length=80)
    store = Store.open(exact_outputs()(artifact, context(tmp_path / "outputs")).parts["teacher_outputs"])
    _, student = both(artifact)
    encoded = student.encode(load_split(artifact.parts["data"], "train").texts)
    rows = [7, 2, 11, 2]
    assert len({encoded.lengths[row] for row in rows}) > 1
    said = store.states_of(rows, [1, 3])
    inputs = student.inputs(encoded, rows)
    for values in said.values.values():
        assert values.shape == (*inputs["input_ids"].shape, 32) and values.dtype == torch.float32
    assert not (said.mask & (inputs["attention_mask"] == 0)).any()
    for place, row in enumerate(rows):
        alone = store.states_of([row], [3, 1])
        length = encoded.lengths[row]
        assert torch.equal(said.positions[place, :length], alone.positions[0])
        assert not said.mask[place, length:].any()
        for state in (1, 3):
            assert torch.equal(said.values[state][place, :length], alone.values[state][0])
            assert not said.values[state][place, length:].any()


def test_pieces_beyond_the_teachers_cut_are_unknown(tmp_path: Path) -> None:
    """A student that reads further than its teacher did is told nothing of what lies there."""
    teacher = classifier()
    texts = [("a quiet film of the plot",), ("a film",)]
    cut, own = encode(teacher.tokenizer, texts, 5), teacher.encode(texts)
    compute(teacher, cut, own, (0, 3), context(tmp_path))
    store = Store.open(tmp_path)
    assert store.positions.tolist() == [0, 1, 2, 3, -1, -1, -1, 4, 0, 1, 2, 3]
    said = store.states_of([1, 0], [3])
    assert said.mask.tolist() == [[True] * 4 + [False] * 4, [True] * 4 + [False] * 3 + [True]]
    with torch.no_grad():
        wanted = teacher.model(**teacher.inputs(cut, [0]), output_hidden_states=True).hidden_states[3][0]
    # [CLS] a quiet film, and the [SEP] that stands behind the cut.
    assert torch.allclose(said.values[3][1, [0, 1, 2, 3, 7]], wanted, atol=4e-3, rtol=1e-3)


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
    whole = exact_outputs()(artifact, context(tmp_path / "whole"))
    with pytest.raises(KilledError):
        exact_outputs()(artifact, context(tmp_path / "killed", KilledAt(batch)))
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
    resumed = exact_outputs()(artifact, context(tmp_path / "killed"))
    assert len(asked) == 24 - 5 * saved if saved < 5 else not asked
    for name in ("logits", "hidden", "positions", "offsets"):
        one, two = (
            np.load(place.parts["teacher_outputs"] / f"{name}.npy", mmap_mode="r")
            for place in (whole, resumed)
        )
        assert np.array_equal(one, two), name


def test_a_half_made_array_is_made_anew(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    whole = Store.open(exact_outputs()(artifact, context(tmp_path / "whole")).parts["teacher_outputs"])
    for content in (b"", b"\x93NUMPY", (tmp_path / "whole" / "hidden.npy").read_bytes()[:200]):
        folder = tmp_path / "half"
        place = context(folder)
        (folder / "hidden.npy").write_bytes(content)
        again = Store.open(exact_outputs()(artifact, place).parts["teacher_outputs"])
        assert np.array_equal(again.hidden, whole.hidden)
        for path in folder.iterdir():
            path.unlink()


def test_a_finished_store_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = with_student(tmp_path)
    first = exact_outputs()(artifact, context(tmp_path / "outputs"))

    def never(*_: object) -> None:
        raise AssertionError("the teacher was run again")

    monkeypatch.setattr(Classifier, "inputs", never)
    assert exact_outputs()(artifact, context(tmp_path / "outputs")) == first


def test_no_states_are_logits_only(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    done = exact_outputs(states=())(artifact, context(tmp_path / "outputs"))
    store = Store.open(done.parts["teacher_outputs"])
    teacher, _ = both(artifact)
    texts = load_split(artifact.parts["data"], "train").texts
    assert np.allclose(store.logits, teacher.logits(teacher.encode(texts)), atol=1e-5)
    assert store.hidden.shape[1] == 0
    assert done.figures["teacher_states"] == []


def test_states_of_ones_own(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    default = Store.open(exact_outputs()(artifact, context(tmp_path / "a")).parts["teacher_outputs"])
    done = exact_outputs(states=(3, 0, 0))(artifact, context(tmp_path / "b"))
    own = Store.open(done.parts["teacher_outputs"])
    assert own.states == (0, 3) and done.figures["teacher_states"] == [0, 3]
    assert np.array_equal(own.hidden[:, 0], default.hidden[:, 0])
    assert np.array_equal(own.hidden[:, 1], default.hidden[:, 2])


def test_layer_inputs_are_kept_beside_their_outputs(tmp_path: Path) -> None:
    done = exact_outputs(layer_inputs=True)(with_student(tmp_path), context(tmp_path / "a"))
    assert done.figures["teacher_states"] == [0, 1, 2, 3]


def test_states_of_a_student_that_was_not_cut_out_are_spread(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    shape = {name: value for name, value in artifact.figures["shape"].items() if name != "teacher_layers"}
    done = exact_outputs()(artifact.with_figures(shape=shape), context(tmp_path / "a"))
    assert done.figures["teacher_states"] == [0, 1, 3]


@pytest.mark.parametrize("states", [(0, 4), (-1, 1, 2)])
def test_states_that_the_teacher_has_not_are_refused(tmp_path: Path, states: tuple[int, ...]) -> None:
    artifact = with_student(tmp_path)
    with pytest.raises(RecipeError) as error:
        exact_outputs(states=states)(artifact, context(tmp_path / "outputs"))
    assert str(error.value) == f"states={list(states)} are not all states of the teacher: 0 to 3"


@pytest.mark.parametrize("width", [0, -1, 33])
def test_a_width_out_of_range_is_refused(tmp_path: Path, width: int) -> None:
    with pytest.raises(RecipeError, match=rf"width={width} is out of range; .* allowed: 1 to 32, or null"):
        exact_outputs(width=width)(with_student(tmp_path), context(tmp_path / "outputs"))


def test_the_pool_is_asked_not_train_alone(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    alone = Store.open(exact_outputs()(artifact, context(tmp_path / "alone")).parts["teacher_outputs"])
    more = [("a film without a label",), ("",), ("naïve 日本 😀",)]
    save_texts(more, artifact.parts["data"] / "unlabeled.jsonl")
    store = Store.open(exact_outputs()(artifact, context(tmp_path / "pool")).parts["teacher_outputs"])
    teacher, _ = both(artifact)
    assert len(store.logits) == 27 and np.allclose(store.logits[:24], alone.logits, atol=1e-5)
    assert np.allclose(store.logits[24:], teacher.logits(teacher.encode(more)), atol=1e-5)


def test_states_in_fewer_directions(tmp_path: Path) -> None:
    """Orthonormal, the longest first, and together as good as any: the rest of the length is lost."""
    artifact = with_student(tmp_path)
    whole = Store.open(exact_outputs()(artifact, context(tmp_path / "a")).parts["teacher_outputs"])
    thin = Store.open(exact_outputs(width=8)(artifact, context(tmp_path / "b")).parts["teacher_outputs"])
    assert thin.hidden.shape == (*whole.hidden.shape[:2], 8) and thin.width == 8
    assert thin.bases is not None and thin.bases.shape == (3, 32, 8)
    for state, basis in zip(whole.states, thin.bases, strict=True):
        assert torch.allclose(basis.T @ basis, torch.eye(8), atol=1e-5)
        full = whole.states_of([0, 1, 2], [state])
        kept = thin.states_of([0, 1, 2], [state])
        assert torch.allclose(kept.values[state], full.values[state] @ basis, atol=2e-2)
        assert torch.allclose(kept.whole(state), full.values[state] @ basis @ basis.T, atol=3e-2)
        assert torch.equal(full.whole(state), full.values[state])
    lengths = np.linalg.norm(thin.hidden.astype(np.float32), axis=0)
    assert (lengths.argmax(axis=1) == 0).all()


def test_all_directions_are_the_states_themselves(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    made = [exact_outputs(width=width)(artifact, context(tmp_path / str(width))) for width in (None, 32)]
    stores = [Store.open(each.parts["teacher_outputs"]) for each in made]
    assert stores[1].bases is None and np.array_equal(stores[0].hidden, stores[1].hidden)


@pytest.mark.parametrize("batch", [2, 4])
def test_a_killed_run_ends_in_the_same_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    artifact = with_student(tmp_path)
    stage = exact_outputs(width=5)
    whole = stage(artifact, context(tmp_path / "whole"))
    with pytest.raises(KilledError):
        stage(artifact, context(tmp_path / "killed", KilledAt(batch)))
    # The space of the first run is taken, not computed again.
    monkeypatch.setattr("pocketlm.distill.teacher_outputs.principal_directions", None)
    resumed = stage(artifact, context(tmp_path / "killed"))
    for name in ("bases", "logits", "hidden", "positions"):
        one, two = (np.load(done.parts["teacher_outputs"] / f"{name}.npy") for done in (whole, resumed))
        assert np.array_equal(one, two), name


def test_states_that_were_not_kept_are_missed(tmp_path: Path) -> None:
    done = exact_outputs(states=(0, 3))(with_student(tmp_path), context(tmp_path / "a"))
    store = Store.open(done.parts["teacher_outputs"])
    store.need([3, 0], "nothing")
    with pytest.raises(RecipeError) as error:
        store.need((0, 1, 2), "hidden=1.0")
    assert str(error.value) == (
        "hidden=1.0 needs the teacher's states [0, 1, 2], and [1, 2] were not kept; set states: [0, 1, 2, 3] "
        "in the teacher_outputs stage, or leave the term out"
    )


def test_the_teacher_is_asked_without_dropout(tmp_path: Path) -> None:
    artifact = with_student(tmp_path)
    made = classifier(layers=3, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    made.save(tmp_path / "dropping")
    stores = [
        Store.open(exact_outputs()(given, context(tmp_path / name)).parts["teacher_outputs"])
        for name, given in (
            ("plain", artifact),
            ("other", replace(artifact).with_part("teacher", tmp_path / "dropping")),
        )
    ]
    assert np.array_equal(stores[0].logits, stores[1].logits)

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketlm.artifact import Artifact
from pocketlm.data.augment import OPERATIONS
from pocketlm.data.examples import Examples, load_pool, load_split, load_texts, save_texts
from pocketlm.data.unlabeled import normalised
from pocketlm.distill import augment
from pocketlm.distill.augment import Augment, padded_targets, tune_masked_lm
from pocketlm.errors import RecipeError, TeacherError
from pocketlm.models.masked_lm import IGNORED, load_masked_lm
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from pocketlm.train import Settings
from tests.models.test_masked_lm import masked_lm
from tests.tiny import KilledError
from tests.tiny_models import MAX_LENGTH, PAIR, SINGLE, classifier, prepared

QUICK = Augment(
    masked_lm_steps=3, samples=4, batch_size=4, precision="fp32", operations=dict.fromkeys(OPERATIONS, 1.0)
)


def context(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, folder)


def ready(folder: Path, task: Task = SINGLE, architecture: Any = "bert") -> Artifact:
    classifier(architecture, task, layers=1).save(folder / "teacher")
    return prepared(folder, task).with_part("teacher_source", folder / "teacher")


def texts_of(artifact: Artifact) -> list[tuple[str, ...]]:
    return load_texts(artifact.parts["augmented"] / "augmented.jsonl")


@pytest.mark.parametrize("task", [SINGLE, PAIR])
@pytest.mark.parametrize("architecture", ["bert", "mpnet", "roberta"])
def test_new_texts_join_the_pool(task: Task, architecture, tmp_path: Path) -> None:
    before = ready(tmp_path, task, architecture)
    after = QUICK(before, context(tmp_path / "augment"))
    made = texts_of(after)
    train = load_split(before.parts["data"], "train")
    pool = load_pool(after)
    assert pool.texts == [*train.texts, *made] and pool.labels == train.labels
    figures = after.figures["augmented"]
    assert figures["texts"] == len(made) > 2 * len(train)
    assert set(figures["by_operation"]) == {*OPERATIONS, "nothing_new"}
    assert sum(figures["by_operation"].values()) == 4 * len(train)
    assert figures["masked_lm"] == "tuned for 3 steps" and figures["curve"]
    held = {
        normalised(text)
        for split in ("valid", "test")
        for text in load_split(before.parts["data"], split).texts
    }
    assert not held & {normalised(example) for example in made}
    again = QUICK(before, context(tmp_path / "again"))
    assert texts_of(again) == made


def test_unlabeled_texts_are_augmented_too(tmp_path: Path) -> None:
    artifact = ready(tmp_path)
    save_texts([("zebra",)], artifact.parts["data"] / "unlabeled.jsonl")
    stage = Augment(operations={"crossover": 1.0}, samples=9)
    assert any("zebra" in text.split() for (text,) in texts_of(stage(artifact, context(tmp_path / "a"))))


def test_no_more_than_asked_for(tmp_path: Path) -> None:
    stage = replace(QUICK, most=7, operations={"spans": 1.0, "replace": 0.0})
    after = stage(ready(tmp_path), context(tmp_path / "a"))
    assert len(texts_of(after)) == after.figures["augmented"]["texts"] == 7
    assert after.figures["augmented"]["masked_lm"] is None


def test_a_teacher_with_a_head_is_not_tuned(tmp_path: Path) -> None:
    artifact = ready(tmp_path)
    lm = masked_lm()
    lm.save(tmp_path / "with_head")
    stage = replace(QUICK, operations={"replace": 1.0})
    after = stage(artifact.with_part("teacher_source", tmp_path / "with_head"), context(tmp_path / "a"))
    assert after.figures["augmented"]["masked_lm"] == "the teacher's own"
    static = replace(stage, masked_lm_steps=0)(artifact, context(tmp_path / "b"))
    assert static.figures["augmented"]["masked_lm"] is None
    assert texts_of(static) and texts_of(after)


def test_a_killed_stage_does_not_tune_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = ready(tmp_path)
    whole = texts_of(QUICK(artifact, context(tmp_path / "whole")))

    def die(*arguments: Any) -> Any:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(augment, "word_candidates", die)
        with pytest.raises(KilledError):
            QUICK(artifact, context(tmp_path / "killed"))
    monkeypatch.setattr(augment, "tune_masked_lm", die)
    assert texts_of(QUICK(artifact, context(tmp_path / "killed"))) == whole


def test_tuning_learns_and_leaves_the_embeddings(tmp_path: Path) -> None:
    teacher = classifier("bert", layers=1)
    teacher.save(tmp_path)
    texts = [("the quiet film is good",), ("the loud film is bad",)] * 4
    lm, _ = load_masked_lm(tmp_path, MAX_LENGTH)
    settings = Settings(epochs=1, learning_rate=1e-2, batch_size=8, evaluations=4, precision="fp32")
    curve = tune_masked_lm(lm, texts, texts, 24, settings, context(tmp_path / "run"))
    assert curve[-1]["step"] == 24
    assert curve[-1]["valid_score"] > curve[0]["valid_score"] > -20
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
    torch.testing.assert_close(
        lm.model.get_input_embeddings().weight, teacher.model.get_input_embeddings().weight
    )


def test_test_rows_change_nothing_but_what_is_dropped(tmp_path: Path) -> None:
    artifact = ready(tmp_path)
    first = texts_of(QUICK(artifact, context(tmp_path / "a")))
    test = load_split(artifact.parts["data"], "test")
    Examples([*test.texts, first[0]], [*test.labels, 0]).save(artifact.parts["data"] / "test.jsonl")
    assert texts_of(QUICK(artifact, context(tmp_path / "b"))) == first[1:]


def test_targets_are_padded_with_what_is_ignored() -> None:
    assert padded_targets([[1, 2], [3]]).tolist() == [[1, 2], [3, IGNORED]]


def test_a_mask_is_needed_only_to_mask(tmp_path: Path) -> None:
    artifact = ready(tmp_path)
    path = artifact.parts["teacher_source"] / "tokenizer.json"
    path.write_text(path.read_text().replace("[MASK]", "[HIDE]"))
    with pytest.raises(TeacherError, match="no mask token"):
        Augment(operations={"mask": 1.0})(artifact, context(tmp_path / "a"))
    assert texts_of(Augment(operations={"spans": 1.0})(artifact, context(tmp_path / "b")))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"operations": {"shuffle": 1.0}}, "'shuffle', which is none; allowed: replace, spans"),
        ({"operations": {}}, "one of them above 0"),
        ({"operations": {"mask": 0.0}}, "one of them above 0"),
        ({"operations": {"mask": -1.0, "spans": 1.0}}, "0 or more"),
        ({"replace": 0.0}, "replace=0.0 is out of range; allowed: above 0, at most 1"),
        ({"mask": 1.5}, "mask=1.5"),
        ({"span": (0.9, 0.2)}, r"span=\[0.9, 0.2\]"),
        ({"samples": 0}, "samples=0"),
        ({"most": 0}, "most=0"),
        ({"masked_lm_steps": -1}, "masked_lm_steps=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Augment(**values)


def test_the_texts_are_written_as_lines(tmp_path: Path) -> None:
    after = replace(QUICK, operations={"spans": 1.0})(ready(tmp_path), context(tmp_path / "a"))
    first = (after.parts["augmented"] / "augmented.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert set(json.loads(first)) == {"texts"}

"""The assistant: taught by the teacher, and the one that the student is made of and asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_pool, load_split, save_texts
from pocketlm.distill.assistant import Assistant
from pocketlm.distill.teacher_outputs import Store, TeacherOutputs
from pocketlm.errors import RecipeError
from pocketlm.models.families import layers_of
from pocketlm.models.load import Classifier, parameters_of
from pocketlm.models.student import BuildStudent
from pocketlm.stage import Context
from tests.tiny_models import MAX_LENGTH, SINGLE, classifier, prepared

STAGE = Assistant(epochs=8, learning_rate=5e-3, head_rate=2.0, batch_size=16, precision="fp32")


def context(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, folder)


@pytest.fixture(scope="module")
def assisted(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("assisted")
    artifact = prepared(folder, SINGLE, train=96)
    # A teacher that decides by a word of the text, and a start of another family, width and depth.
    teacher = classifier("bert", layers=3)
    with torch.no_grad():
        teacher.model.classifier.weight *= 40
    teacher.save(folder / "teacher")
    classifier("electra", layers=2).save(folder / "start")
    artifact = artifact.with_part("teacher", folder / "teacher").with_part("start_source", folder / "start")
    return STAGE(artifact.with_figures(max_length=MAX_LENGTH), context(folder / "stage"))


def loaded(artifact: Artifact, part: str) -> Classifier:
    return Classifier.load(artifact.parts[part], SINGLE, MAX_LENGTH)


def test_the_assistant_is_the_start_whole_and_says_what_the_teacher_says(assisted: Artifact) -> None:
    assistant, start, teacher = (loaded(assisted, part) for part in ("assistant", "start_source", "teacher"))
    assert len(layers_of(assistant.model)) == 2 and assistant.model.config.model_type == "electra"
    assert assistant.tokenizer.get_vocab() == start.tokenizer.get_vocab()
    texts = load_split(assisted.parts["data"], "train").texts
    said = {name: model.logits(model.encode(texts)) for name, model in (("a", assistant), ("t", teacher))}
    assert np.mean(said["a"].argmax(axis=1) == said["t"].argmax(axis=1)) > 0.9
    assert assisted.figures["assistant"]["curve"]
    tables = [model.model.get_input_embeddings().weight for model in (assistant, start)]
    assert torch.equal(*tables)
    assert assisted.figures["teacher_parameters"] == parameters_of(teacher.model)


def test_the_student_is_cut_out_of_the_assistant_and_asks_it(assisted: Artifact, tmp_path: Path) -> None:
    built = BuildStudent(layers=1, vocabulary=None)(assisted, context(tmp_path / "student"))
    student, assistant = loaded(built, "student"), loaded(built, "assistant")
    assert torch.equal(layers_of(student.model)[0].query.weight, layers_of(assistant.model)[1].query.weight)
    assert built.figures["teacher_parameters"] == assisted.figures["teacher_parameters"]
    asked = TeacherOutputs(precision="fp32")(built, context(tmp_path / "outputs"))
    store = Store.open(asked.parts["teacher_outputs"])
    said = assistant.logits(assistant.encode(load_split(built.parts["data"], "train").texts))
    assert store.depth == 2 and np.allclose(store.logits, said, atol=1e-5)


def test_the_assistant_is_made_of_the_lowest_layers_of_the_teacher(tmp_path: Path) -> None:
    artifact = prepared(tmp_path, SINGLE, train=96)
    classifier("bert", layers=3).save(tmp_path / "teacher")
    artifact = artifact.with_part("teacher", tmp_path / "teacher").with_figures(max_length=MAX_LENGTH)
    still = Assistant(layers=2, epochs=1, learning_rate=1e-12, batch_size=16, precision="fp32")
    made = still(artifact, context(tmp_path / "stage"))
    assistant, teacher = loaded(made, "assistant"), loaded(made, "teacher")
    weights = [[layer.query.weight for layer in layers_of(of.model)] for of in (assistant, teacher)]
    assert len(weights[0]) == 2 and assistant.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()
    assert all(torch.allclose(kept, taken) for kept, taken in zip(weights[0], weights[1][:2], strict=True))
    assert torch.allclose(assistant.model.classifier.weight, teacher.model.classifier.weight)
    taught = Assistant(layers=2, epochs=8, learning_rate=5e-3, batch_size=16, precision="fp32")
    curve = taught(artifact, context(tmp_path / "taught")).figures["assistant"]["curve"]
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]


def test_the_assistant_learns_of_few_made_texts_and_the_student_of_all(tmp_path: Path) -> None:
    artifact = prepared(tmp_path, SINGLE, train=24)
    classifier("bert", layers=2).save(tmp_path / "teacher")
    made = [(f"new text {number}",) for number in range(20)]
    save_texts(made, context(tmp_path / "augment").folder / "augmented.jsonl")
    artifact = artifact.with_part("teacher", tmp_path / "teacher").with_figures(max_length=MAX_LENGTH)
    artifact = artifact.with_part("augmented", tmp_path / "augment")
    for most, asked in ((0, 24), (5, 29), (None, 44)):
        folder = tmp_path / f"at most {most}"
        after = Assistant(layers=1, epochs=1, most=most, precision="fp32")(artifact, context(folder))
        assert len(Store.open(folder / "outputs").logits) == asked
        assert load_pool(after).texts[24:] == made


def test_an_assistant_is_made_of_one_model(assisted: Artifact, tmp_path: Path) -> None:
    artifact = prepared(tmp_path, SINGLE)
    with pytest.raises(RecipeError, match="and here there are neither"):
        STAGE(artifact, context(tmp_path / "stage"))
    with pytest.raises(RecipeError, match="there are both"):
        Assistant(layers=2)(assisted, context(tmp_path / "both"))
    with pytest.raises(RecipeError, match="epochs=0"):
        Assistant(epochs=0)
    with pytest.raises(RecipeError, match="layers=0"):
        Assistant(layers=0)
    with pytest.raises(RecipeError, match="most=-1"):
        Assistant(most=-1)

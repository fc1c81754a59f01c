from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pocketlm.data.examples import load_split
from pocketlm.distill.layers import Distill
from pocketlm.distill.losses import logit_bernoulli_kl, logit_kl
from pocketlm.distill.teacher_outputs import Store
from pocketlm.distill.words import span_kl, word_kl
from pocketlm.models.load import Classifier
from pocketlm.models.student import BuildStudent
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import words_of
from tests.easy import exact_outputs
from tests.tiny_models import MANY, MAX_LENGTH, ON_WORDS, classifier, prepared

both = pytest.mark.parametrize("distance", [word_kl, span_kl])
MASK = torch.tensor([[True, True, False], [True, False, False], [False] * 3])


@both
def test_equal_is_zero_and_masked_words_count_for_nothing(distance) -> None:
    teacher, student = torch.randn(3, 3, 2), torch.randn(3, 3, 2)
    assert distance(teacher, teacher, MASK, 2.0).abs().max() < 1e-6
    losses = distance(student, teacher, MASK, 2.0)
    other = torch.where(MASK[..., None], student, 7 * torch.randn(3, 3, 2))
    assert torch.equal(distance(other, teacher, MASK, 2.0), losses)
    longer = [torch.cat([side, torch.randn(3, 2, 2)], dim=1) for side in (student, teacher)]
    mask = torch.cat([MASK, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    assert torch.allclose(distance(*longer, mask, 2.0), losses, atol=1e-6)
    assert losses[0] > 0 and losses[2] == 0 and losses.isfinite().all()


def test_each_is_the_kl_of_its_choices() -> None:
    teacher, student = torch.randn(3, 3, 2), torch.randn(3, 3, 2)
    tags = word_kl(student, teacher, MASK, 3.0)
    assert float(tags[0]) == pytest.approx(
        float(logit_kl(student[0, :2], teacher[0, :2], 3.0).mean()), abs=1e-6
    )
    ends = span_kl(student, teacher, MASK, 3.0)
    wanted = logit_kl(student[0, :2].T, teacher[0, :2].T, 3.0).mean()
    assert float(ends[0]) == pytest.approx(float(wanted), abs=1e-6)
    assert ends[1] == 0, "a single word leaves no choice"


@both
def test_gradients_match_finite_differences(distance) -> None:
    teacher = torch.randn(3, 3, 2, dtype=torch.float64)
    student = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: distance(x, teacher, MASK, 2.0), (student,))


def test_yes_and_no_are_two_classes() -> None:
    teacher, student = 4 * torch.randn(5, 3), 4 * torch.randn(5, 3)
    pairs = [torch.stack([torch.zeros_like(side), side], dim=-1) for side in (student, teacher)]
    wanted = logit_kl(*pairs, temperature=2.0).mean(dim=-1)
    assert torch.allclose(logit_bernoulli_kl(student, teacher, 2.0), wanted, atol=1e-5)
    assert logit_bernoulli_kl(teacher, teacher).abs().max() < 1e-6
    assert logit_bernoulli_kl(100 * student, -100 * teacher).isfinite().all()
    exact = student.double().requires_grad_()
    torch.autograd.gradcheck(lambda x: logit_bernoulli_kl(x, teacher.double(), 2.0), (exact,))


def context(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, folder)


@pytest.mark.parametrize("task", ON_WORDS, ids=lambda task: task.kind)
def test_the_store_holds_what_the_teacher_says_of_words(tmp_path: Path, task: Task) -> None:
    teacher = classifier(task=task)
    teacher.save(tmp_path / "teacher")
    artifact = prepared(tmp_path, task).with_part("teacher", tmp_path / "teacher")
    artifact = BuildStudent(layers=2, vocabulary=100)(artifact, context(tmp_path / "student"))
    done = exact_outputs()(artifact, context(tmp_path / "outputs"))
    store = Store.open(done.parts["teacher_outputs"]).words
    assert store is not None
    texts = load_split(artifact.parts["data"], "train").texts
    assert store.offsets.tolist() == np.cumsum([0, *(len(words_of(task, text)) for text in texts)]).tolist()
    encoded = teacher.encode(texts)
    cut = 0
    for index in range(len(texts)):
        with torch.no_grad():
            said = teacher.model(**teacher.inputs(encoded, [index])).word_logits[0]
        logits, mask = store.of([index])
        assert mask[0].tolist() == [place != -1 for place in encoded.words[index]]
        for word, place in enumerate(encoded.words[index]):
            cut += place == -1
            if place != -1:
                assert torch.allclose(logits[0, word], said[place], atol=1e-5)
    assert cut > 0 or task.kind != "qa"


@pytest.mark.parametrize("task", [MANY, *ON_WORDS], ids=lambda task: task.kind)
def test_a_student_learns_to_say_what_its_teacher_says(tmp_path: Path, task: Task) -> None:
    """With other pieces than the teacher's."""
    classifier(task=task, max_length=40).save(tmp_path / "teacher")
    artifact = prepared(tmp_path, task).with_part("teacher", tmp_path / "teacher").with_figures(max_length=40)
    artifact = BuildStudent(layers=2, vocabulary=100)(artifact, context(tmp_path / "student"))
    artifact = exact_outputs()(artifact, context(tmp_path / "outputs"))
    stage = Distill(epochs=6, learning_rate=3e-3, batch_size=8, precision="fp32", labels=0.1)
    done = stage(artifact, context(tmp_path / "distil"))
    texts = load_split(artifact.parts["data"], "train").texts

    def distance(folder: Path) -> float:
        teacher, student = (Classifier.load(path, task, 40) for path in (artifact.parts["teacher"], folder))
        sides = [model.logits(model.encode(texts)) for model in (teacher, student)]
        if task.kind == "multilabel":
            return float(np.abs(sides[0] - sides[1]).mean())
        return float(np.abs(sides[0].words - sides[1].words).mean())

    assert (
        done.figures["distil"]["curve"][-1]["train_loss"] < done.figures["distil"]["curve"][0]["train_loss"]
    )
    assert distance(done.parts["student"]) < distance(artifact.parts["student"])
    assert MAX_LENGTH < 40

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pocketlm.artifact import Artifact
from pocketlm.distill.subwords import Subwords, mixed_loss, student_loss, two_softmaxes
from pocketlm.errors import RecipeError, TeacherError
from pocketlm.models.load import Classifier, parameters_of
from pocketlm.recipe import read, resolve
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from pocketlm.tokenization.mixed import segment
from tests.distill.test_projections import TEXTS, WORDPIECE, both
from tests.models.test_masked_lm import masked_lm
from tests.tiny_models import JOINT, MAX_LENGTH, PAIR, SINGLE, VALUE, classifier, prepared

QUICK = Subwords(vocabulary=140, hidden_size=16, steps=3, batch_size=4, precision="fp32")


def context(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, folder)


def ready(folder: Path, task: Task = SINGLE, architecture: Any = "bert") -> Artifact:
    teacher = classifier(architecture, task, layers=2)
    teacher.save(folder / "teacher")
    artifact = prepared(folder, task).with_part("teacher", folder / "teacher")
    return artifact.with_part("teacher_source", folder / "teacher")


@pytest.mark.parametrize("architecture", WORDPIECE)
@pytest.mark.parametrize("task", [SINGLE, PAIR])
def test_the_student_is_a_narrow_classifier_over_the_learned_pieces(
    architecture, task, tmp_path: Path
) -> None:
    after = QUICK(ready(tmp_path, task, architecture), context(tmp_path / "run"))
    student = Classifier.load(after.parts["student"], task, MAX_LENGTH)
    shape = after.figures["shape"]
    assert (shape["layers"], shape["teacher_layers"], shape["hidden_size"]) == (2, [0, 1], 16)
    assert (shape["intermediate_size"], shape["heads"]) == (64, 4)
    assert shape["vocabulary"] == student.tokenizer.get_vocab_size() <= 140
    assert after.figures["parameters"] == parameters_of(student.model)
    assert after.figures["teacher_parameters"] > 2 * after.figures["parameters"]
    texts = [("a quiet film", "the plot")[: 1 + task.pair]]
    assert student.logits(student.encode(texts)).shape == (1, task.outputs)
    assert len(after.figures["subwords"]["curve"]) >= 1


def test_the_untrained_student_is_where_training_began(tmp_path: Path) -> None:
    after = QUICK(ready(tmp_path), context(tmp_path / "run"))
    trained, untrained = (
        Classifier.load(after.parts[part], SINGLE, MAX_LENGTH).model.state_dict()
        for part in ("student", "untrained_student")
    )
    assert trained.keys() == untrained.keys()
    for name, tensor in trained.items():
        head = name.startswith(("classifier", "bert.pooler"))
        assert torch.equal(tensor, untrained[name]) == head, name


def test_the_same_seed_gives_the_same_student(tmp_path: Path) -> None:
    artifact = ready(tmp_path, VALUE)
    first, again = (QUICK(artifact, context(tmp_path / name)).parts["student"] for name in ("a", "b"))
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert (first / "tokenizer.json").read_bytes() == (again / "tokenizer.json").read_bytes()


def test_dual_training_learns(tmp_path: Path) -> None:
    stage = Subwords(
        vocabulary=140, hidden_size=16, steps=60, batch_size=8, learning_rate=5e-3, precision="fp32"
    )
    curve = stage(ready(tmp_path), context(tmp_path / "run")).figures["subwords"]["curve"]
    assert curve[-1]["valid_score"] > curve[0]["valid_score"]
    assert curve[-1]["train_loss"] < 0.8 * curve[0]["train_loss"]


def test_every_target_is_sought_in_its_own_vocabulary() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 10), torch.tensor([0, 9, 4, 6, 5, 7])
    losses = two_softmaxes(logits, targets, 6)
    for row, target in enumerate(targets.tolist()):
        part = slice(0, 6) if target < 6 else slice(6, 10)
        wanted = -torch.log_softmax(logits[row, part], dim=0)[target - part.start]
        torch.testing.assert_close(losses[row], wanted)
    assert two_softmaxes(logits[:0], targets[:0], 6).shape == (0,)


def test_padding_and_company_never_change_a_loss() -> None:
    student, teacher = both()
    student.model.eval()
    words = segment(teacher.tokenizer, student.tokenizer, TEXTS[:6], MAX_LENGTH)
    encoded = student.encode(TEXTS[:6])
    mixed = mixed_loss(teacher, words, 0.5, range(6), 0)
    own = student_loss(student, encoded, range(6), range(6), 0)
    for row in range(6):
        torch.testing.assert_close(mixed_loss(teacher, [words[row]], 0.5, [row], 0)[0], mixed[row])
        torch.testing.assert_close(student_loss(student, encoded, [row], [row], 0)[0], own[row])


def test_new_pieces_begin_as_the_teachers_of_the_same_letters() -> None:
    before = masked_lm().model.get_input_embeddings().weight
    student, teacher = both()
    table = teacher.model.get_input_embeddings().weight
    first = teacher.tokenizer.get_vocab_size()
    torch.testing.assert_close(table[:first], before)
    assert len(table) == first + student.tokenizer.get_vocab_size()
    for name in ("film", "##s", "[SEP]"):
        torch.testing.assert_close(
            table[first + student.tokenizer.token_to_id(name)], before[teacher.tokenizer.token_to_id(name)]
        )


def test_the_recipe_resolves() -> None:
    path = Path(__file__).parents[2] / "src" / "pocketlm" / "recipes" / "subwords.yaml"
    recipe = resolve({**read(path), "teacher": "t", "data": "d.tsv"})
    assert any(isinstance(stage, Subwords) for stage in recipe.stages)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"p_dt": 1.5}, "p_dt=1.5 is out of range; allowed: 0 to 1"),
        ({"epsilon": -1.0}, "epsilon=-1.0"),
        ({"steps": 0}, "steps=0"),
        ({"vocabulary": 0}, "vocabulary=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Subwords(**values)


def test_a_width_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    stage = Subwords(vocabulary=140, hidden_size=18, steps=1)
    with pytest.raises(
        RecipeError, match="hidden_size=18 does not divide by the teacher's 4 heads; try 16 or 20"
    ):
        stage(ready(tmp_path), context(tmp_path / "run"))


def test_a_task_on_words_is_refused_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"for whole texts, and the task \(joint\) is on words"):
        QUICK(ready(tmp_path, JOINT), context(tmp_path / "run"))


def test_embeddings_of_another_width_are_refused(tmp_path: Path) -> None:
    ready_one = ready(tmp_path)
    classifier("electra", layers=2, embedding_size=16).save(tmp_path / "teacher")
    with pytest.raises(TeacherError, match="embeddings are 16 wide and its hidden states 32"):
        QUICK(ready_one, context(tmp_path / "run"))


@pytest.mark.parametrize("architecture", ["roberta", "distilbert"])
def test_a_teacher_it_cannot_follow_is_refused(architecture, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"BPE|not built of BERT-like layers"):
        QUICK(ready(tmp_path, SINGLE, architecture), context(tmp_path / "run"))

"""Students of every family and every shape."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from pocketlm.artifact import Artifact
from pocketlm.errors import RecipeError, TeacherError
from pocketlm.export.onnx import export, largest_difference
from pocketlm.models.cut import (
    chosen_heads,
    keep_heads,
    keep_pool,
    project_hidden,
    rebuilt,
    resize_heads,
)
from pocketlm.models.families import family_of, layers_of, pooled_maps
from pocketlm.models.load import Classifier
from pocketlm.models.saliency import survey
from pocketlm.models.student import BuildStudent
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits
from tests.tiny import sentences
from tests.tiny_models import (
    FAMILIES,
    JOINT,
    MAX_LENGTH,
    NEURONS,
    SINGLE,
    TAGGED,
    Architecture,
    classifier,
    prepared,
)

TEXTS = [(text,) for text in sentences(16, longest=6)]
every_family = pytest.mark.parametrize("architecture", FAMILIES)


def built(
    folder: Path, teacher: Classifier, stage: BuildStudent, train: int = 24
) -> tuple[Classifier, Artifact]:
    artifact = prepared(folder, teacher.task, train)
    teacher.save(folder / "teacher")
    artifact = stage(
        artifact.with_part("teacher", folder / "teacher"), Context(folder, folder / "checkpoints")
    )
    return Classifier.load(artifact.parts["student"], teacher.task, MAX_LENGTH), artifact


def logits_of(made: Classifier) -> np.ndarray:
    said = made.logits(made.encode(TEXTS))
    return np.concatenate([said.text.ravel(), said.words.ravel()]) if isinstance(said, WordLogits) else said


@every_family
def test_a_whole_student_is_its_teacher_after_save_and_reload(
    tmp_path: Path, architecture: Architecture
) -> None:
    teacher = classifier(architecture)
    student, artifact = built(tmp_path, teacher, BuildStudent(layers=3, vocabulary=None))
    assert np.allclose(logits_of(student), logits_of(teacher), atol=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(artifact.parts["student"])
    inputs = student.inputs(student.encode(TEXTS), range(len(TEXTS)))
    with torch.no_grad():
        assert np.allclose(plain(**inputs).logits.numpy(), logits_of(teacher), atol=1e-5)


SHAPES = {
    "layers": BuildStudent(layers=2, vocabulary=None),
    "neurons": BuildStudent(intermediate_size=20, vocabulary=None),
    "heads": BuildStudent(heads=2, vocabulary=None),
    "hidden": BuildStudent(hidden_size=16, vocabulary=None),
    "projected": BuildStudent(layers=2, hidden_size=24, heads=3, width="saliency"),
    "plain": BuildStudent(
        layers=2, hidden_size=24, heads=2, intermediate_size=20, refit=False, vocabulary=60
    ),
    "vocabulary": BuildStudent(vocabulary=60),
    "random": BuildStudent(layers=2, hidden_size=16, heads=2, intermediate_size=20, init="random"),
}


@every_family
@pytest.mark.parametrize("shape", SHAPES)
def test_a_cut_student_loads_and_runs(tmp_path: Path, architecture: Architecture, shape: str) -> None:
    stage = SHAPES[shape]
    student, artifact = built(tmp_path, classifier(architecture), stage)
    assert np.isfinite(logits_of(student)).all()
    assert len({tuple(row) for row in logits_of(student).round(6).tolist()}) > 1
    config = student.model.config
    assert config.num_hidden_layers == stage.layers
    assert config.hidden_size == (stage.hidden_size or 32) == artifact.figures["shape"]["hidden_size"]
    assert config.num_attention_heads == (stage.heads or 4)
    assert layers_of(student.model)[0].rising.out_features == (stage.intermediate_size or NEURONS)
    output = student.model(**student.inputs(student.encode(TEXTS), [0]), output_hidden_states=True)
    assert len(output.hidden_states) == 4 - (stage.layers == 2)
    assert output.hidden_states[-1].shape[-1] == config.hidden_size


@every_family
def test_dead_neurons_cost_nothing(tmp_path: Path, architecture: Architecture) -> None:
    teacher = classifier(architecture)
    with torch.no_grad():
        for layer in layers_of(teacher.model):
            layer.falling.weight[:, ::3] = 0
    stage = BuildStudent(intermediate_size=NEURONS - NEURONS // 3, vocabulary=None)
    student, _ = built(tmp_path, teacher, stage)
    assert np.allclose(logits_of(student), logits_of(teacher), atol=1e-5)


@every_family
@pytest.mark.parametrize("refit", [False, True])
def test_dead_heads_cost_nothing(tmp_path: Path, architecture: Architecture, refit: bool) -> None:
    """Two of four heads are silent; the student's two are twice as large and say the same."""
    teacher = classifier(architecture)
    with torch.no_grad():
        for layer in layers_of(teacher.model):
            layer.output.weight[:, 8:24] = 0
    refit = refit and not family_of(teacher.model).shared
    student, _ = built(tmp_path, teacher, BuildStudent(layers=3, heads=2, vocabulary=None, refit=refit))
    assert student.model.config.num_attention_heads == 2
    assert np.allclose(logits_of(student), logits_of(teacher), atol=1e-4)


@every_family
def test_dead_units_of_heads_cost_nothing(architecture: Architecture) -> None:
    """Half the units of every head are silent: the head shrinks to the others, by any turn of them."""
    teacher = classifier(architecture)
    with torch.no_grad():
        for layer in layers_of(teacher.model):
            for linear in (*layer.queries, *layer.keys, layer.value):
                linear.weight.unflatten(0, (4, 8))[:, ::2] = 0
                linear.bias.unflatten(0, (4, 8))[:, ::2] = 0
    wanted = logits_of(teacher)
    seen = survey(teacher, teacher.encode(TEXTS))
    small = copy.deepcopy(teacher)
    moments = list(zip(seen.queries, seen.keys, seen.values, strict=True))
    resize_heads(small.model, moments, chosen_heads(small.model, seen.heads, 4), 4)
    # As transformers has no such head size, the units that went are put back as zeros.
    for layer in layers_of(small.model):
        scale = 2**0.5
        for linear in (*layer.queries, *layer.keys, layer.value):
            factor = scale if linear in layer.queries else 1.0
            linear.weight = nn.Parameter(_spread(linear.weight) * factor)
            linear.bias = nn.Parameter(_spread(linear.bias[:, None])[:, 0] * factor)
        layer.output.weight = nn.Parameter(_spread(layer.output.weight.T).T.contiguous())
    assert np.allclose(logits_of(small), wanted, atol=1e-4)


def _spread(rows: torch.Tensor) -> torch.Tensor:
    """Four rows for each of four heads to eight, the last four zero."""
    heads = rows.detach().unflatten(0, (4, 4))
    return torch.cat([heads, torch.zeros_like(heads)], dim=1).flatten(0, 1)


@every_family
def test_a_whole_refit_changes_nothing(tmp_path: Path, architecture: Architecture) -> None:
    teacher = classifier(architecture)
    stage = BuildStudent(layers=3, vocabulary=None, refit=True)
    if family_of(teacher.model).shared:
        with pytest.raises(RecipeError, match="share their weights"):
            built(tmp_path, teacher, stage)
        return
    student, _ = built(tmp_path, teacher, stage)
    assert np.allclose(logits_of(student), logits_of(teacher), atol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "electra", "deberta-v2"])
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("task", [SINGLE, TAGGED, JOINT], ids=["single", "tokens", "joint"])
def test_doubled_hidden_units_cost_nothing(
    tmp_path: Path, architecture: Architecture, task: Task, refit: bool
) -> None:
    """In a teacher of twice the width every hidden unit stands twice, and the student finds that out."""
    teacher = classifier(architecture, task)
    seen = survey(teacher, teacher.encode(TEXTS))
    wide = copy.deepcopy(teacher)
    twice = torch.cat([torch.eye(32), torch.eye(32)], dim=1)
    keep_pool(wide.model, torch.arange(32).repeat(2))
    project_hidden(wide.model, twice, twice / 2)
    for linear in pooled_maps(wide.model):
        linear.weight.data[:, 32:] = 0
    moments = list(zip(seen.queries, seen.keys, seen.values, strict=True))
    resize_heads(wide.model, moments, [torch.arange(4)] * 3, 16)
    wide.model = rebuilt(wide.model)
    assert np.allclose(logits_of(wide), logits_of(teacher), atol=1e-5)
    stage = BuildStudent(hidden_size=32, vocabulary=None, refit=refit, width="saliency", layers=3)
    student, _ = built(tmp_path, wide, stage, train=300)
    assert np.allclose(logits_of(student), logits_of(teacher), atol=1e-3)


@every_family
def test_refit_comes_nearer_to_the_teacher(tmp_path: Path, architecture: Architecture) -> None:
    teacher = classifier(architecture)
    if family_of(teacher.model).shared:
        pytest.skip("shared layers are not fitted")
    distances = []
    for refit in (False, True):
        stage = BuildStudent(layers=2, hidden_size=24, heads=4, vocabulary=None, refit=refit)
        student, _ = built(tmp_path / str(refit), teacher, stage, train=300)
        distances.append(np.square(logits_of(student) - logits_of(teacher)).mean())
    assert distances[1] < distances[0]


def test_heads_of_one_bias_table_are_the_same_in_every_layer() -> None:
    made = classifier("mpnet")
    kept = chosen_heads(made.model, [torch.tensor([1.0, 2, 3, 4]), torch.tensor([9.0, 0, 0, 0])], 1)
    assert [heads.tolist() for heads in kept] == [[0], [0]]
    kept = chosen_heads(classifier("bert").model, [torch.tensor([1.0, 2, 3]), torch.tensor([9.0, 0, 1])], 2)
    assert [heads.tolist() for heads in kept] == [[1, 2], [0, 2]]


def test_kept_heads_equal_the_model_with_the_others_silent() -> None:
    made = classifier("bert")
    silent, small = copy.deepcopy(made), copy.deepcopy(made)
    kept = [torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([0, 3])]
    keep_heads(small.model, kept)
    moments = [(torch.eye(8).repeat(4, 1, 1),) * 3] * 3
    resize_heads(small.model, moments, kept, 16)
    small.model = rebuilt(small.model)
    with torch.no_grad():
        for layer, heads in zip(layers_of(silent.model), kept, strict=True):
            for head in {0, 1, 2, 3} - set(heads.tolist()):
                layer.output.weight[:, 8 * head : 8 * head + 8] = 0
    assert np.allclose(logits_of(small), logits_of(silent), atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (BuildStudent(hidden_size=33), "hidden_size=33 is out of range; the teacher has 32 hidden units"),
        (BuildStudent(hidden_size=30), "heads=4 does not divide hidden_size=30; set heads to one of 1, 2, 3"),
        (BuildStudent(heads=5), "heads=5 does not divide hidden_size=32; set heads to one of 1, 2, 4"),
        (BuildStudent(heads=8), "heads=8 is out of range; the teacher has 4, so allowed: 1 to 4"),
        (BuildStudent(embedding_size=32), "embedding_size=32 is out of range; allowed: 1 to 31"),
    ],
)
def test_a_shape_out_of_range_is_refused(tmp_path: Path, stage: BuildStudent, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        built(tmp_path, classifier(), stage)
    assert message in str(error.value)


def test_a_random_student_has_only_the_shape(tmp_path: Path) -> None:
    teacher = classifier()
    stage = BuildStudent(layers=2, hidden_size=16, heads=2, intermediate_size=20, init="random", seed=3)
    student, _ = built(tmp_path / "a", teacher, stage)
    again, _ = built(tmp_path / "b", teacher, stage)
    assert np.array_equal(logits_of(student), logits_of(again))
    weight = layers_of(student.model)[0].rising.weight
    assert abs(weight.std().item() - student.model.config.initializer_range) < 0.005
    other, _ = built(tmp_path / "c", teacher, BuildStudent(layers=2, init="random", seed=4))
    assert not torch.allclose(
        layers_of(other.model)[0].query.weight, layers_of(teacher.model)[1].query.weight, atol=1e-2
    )


def test_a_convolution_is_not_cut_in_width(tmp_path: Path) -> None:
    teacher = classifier("deberta-v2", conv_kernel_size=3, conv_act="gelu")
    student, _ = built(tmp_path / "deep", teacher, BuildStudent(layers=2, vocabulary=None))
    assert np.isfinite(logits_of(student)).all()
    with pytest.raises(TeacherError, match="has a convolution over its hidden units"):
        built(tmp_path / "wide", teacher, BuildStudent(hidden_size=16))


@every_family
def test_the_graph_of_a_cut_student_says_what_torch_says(tmp_path: Path, architecture: Architecture) -> None:
    stage = BuildStudent(layers=1, hidden_size=16, heads=2, intermediate_size=20)
    student, _ = built(tmp_path, classifier(architecture), stage)
    export(student, tmp_path / "model.onnx")
    assert largest_difference(student, tmp_path / "model.onnx", [*TEXTS, ("",)]) < 1e-4

"""Layers of their own shapes: cut as a mask says, saved, loaded again, and exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketlm.distill.states import attention_of
from pocketlm.errors import TeacherError
from pocketlm.export.onnx import export, largest_difference
from pocketlm.models.families import layers_of
from pocketlm.models.load import Classifier, parameters_of
from pocketlm.models.student import BuildStudent
from pocketlm.models.uneven import LIKE_BERT, cut_layers, is_uneven
from pocketlm.prune.masks import prunable
from pocketlm.stage import Context
from tests.tiny_models import (
    HEADS,
    JOINT,
    MAX_LENGTH,
    NEURONS,
    PAIR,
    SINGLE,
    WIDTH,
    Architecture,
    classifier,
    examples_of,
    prepared,
)

CUTTABLE: tuple[Architecture, ...] = ("bert", "roberta", "electra", "mpnet")
# Of four layers: some of both, all, no attention, nothing at all.
KEPT_HEADS = ([0, 3], [0, 1, 2, 3], [], [])
KEPT_NEURONS = ([1, 5, 8, 40], list(range(NEURONS)), [0, 7, 9], [])


def uneven(architecture: Architecture, task=SINGLE) -> Classifier:
    made = classifier(architecture, task, layers=4)
    cut_layers(made.model, KEPT_HEADS, KEPT_NEURONS)
    return made


def masked(architecture: Architecture, task=SINGLE) -> Classifier:
    """The whole model with the same heads and neurons silent, and without the biases of what has none."""
    made, size = classifier(architecture, task, layers=4), WIDTH // HEADS
    for layer, heads, neurons in zip(layers_of(made.model), KEPT_HEADS, KEPT_NEURONS, strict=True):
        for linear, kept, width in ((layer.output, heads, size), (layer.falling, neurons, 1)):
            silent = torch.ones(linear.in_features, dtype=torch.bool)
            for index in kept:
                silent[index * width : (index + 1) * width] = False
            with torch.no_grad():
                linear.weight[:, silent] = 0
                if not kept:
                    linear.bias.zero_()
    return made


@pytest.mark.parametrize("architecture", CUTTABLE)
@pytest.mark.parametrize("task", [SINGLE, PAIR, JOINT], ids=["single", "pair", "joint"])
def test_the_cut_model_says_what_the_masked_one_says(architecture: Architecture, task) -> None:
    small, whole = uneven(architecture, task), masked(architecture, task)
    encoded = whole.encode(examples_of(task, 20).texts)
    said, wanted = small.logits(encoded), whole.logits(encoded)
    if task is JOINT:
        assert np.allclose(said.words, wanted.words, atol=1e-5)
        said, wanted = said.text, wanted.text
    assert np.allclose(said, wanted, atol=1e-5)
    assert parameters_of(small.model) < parameters_of(whole.model)


@pytest.mark.parametrize("architecture", CUTTABLE)
def test_it_is_the_same_after_a_folder(architecture: Architecture, tmp_path: Path) -> None:
    small = uneven(architecture)
    small.save(tmp_path / "small")
    again = Classifier.load(tmp_path / "small", SINGLE, MAX_LENGTH)
    assert is_uneven(again.model.config)
    encoded = small.encode(examples_of(SINGLE, 20).texts)
    assert np.array_equal(again.logits(encoded), small.logits(encoded))
    written = json.loads((tmp_path / "small" / "config.json").read_text())["uneven"]
    assert written[0] == {"heads": [0, 3], "neurons": 4} and written[3] == {"heads": [], "neurons": 0}


@pytest.mark.parametrize("architecture", CUTTABLE)
def test_it_can_be_exported(architecture: Architecture, tmp_path: Path) -> None:
    small = uneven(architecture)
    export(small, tmp_path / "model.onnx")
    texts = examples_of(SINGLE, 8).texts
    assert largest_difference(small, tmp_path / "model.onnx", texts) < 1e-4


def test_weights_that_do_not_fit_the_shapes_are_refused(tmp_path: Path) -> None:
    uneven("bert").save(tmp_path / "small")
    path = tmp_path / "small" / "config.json"
    values = json.loads(path.read_text())
    values["uneven"][2] = {"heads": [1], "neurons": 3}
    path.write_text(json.dumps(values))
    with pytest.raises(TeacherError, match=r"do not fit the shapes in its config\.json"):
        Classifier.load(tmp_path / "small", SINGLE, MAX_LENGTH)


@pytest.mark.parametrize("architecture", CUTTABLE)
def test_its_weights_may_be_masked_and_nothing_more_be_cut(
    architecture: Architecture, tmp_path: Path
) -> None:
    small = uneven(architecture)
    maps = prunable(small.model)
    assert 0 < sum(weight.numel() for weight in maps.values()) < parameters_of(small.model)
    assert sum(
        len(weight) for name, weight in maps.items() if name.endswith("intermediate.dense.weight")
    ) == sum(map(len, KEPT_NEURONS))
    small.save(tmp_path / "small")
    artifact = prepared(tmp_path, SINGLE).with_part("teacher", tmp_path / "small")
    with pytest.raises(TeacherError, match="not cut again: start from the whole model"):
        BuildStudent(vocabulary=None)(artifact, Context(tmp_path, tmp_path))


def test_its_attention_is_not_compared() -> None:
    with pytest.raises(TeacherError, match="leave attention and relations out of the loss"):
        attention_of(uneven("bert").model, 0)


def test_a_family_with_other_layers_is_refused() -> None:
    with pytest.raises(
        TeacherError, match="the layers of a distilbert cannot be cut one by one; allowed: bert"
    ):
        cut_layers(classifier("distilbert").model, [[0]], [[0]])
    assert set(CUTTABLE) < set(LIKE_BERT)

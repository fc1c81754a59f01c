"""Movement pruning: what a score learns, what it keeps, and a student that is pruned by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.distill.layers import Distill
from pocketlm.distill.teacher_outputs import TeacherOutputs
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier
from pocketlm.models.student import BuildStudent
from pocketlm.prune.magnitude import Magnitude
from pocketlm.prune.masks import prunable
from pocketlm.prune.movement import Movement, keep_above, keep_highest, mean_gate, scored
from pocketlm.stage import Context
from tests.tiny_models import MAX_LENGTH, SINGLE, classifier, prepared

# The true labels, which every text shows by a word of its own: on any CPU they are learned to the last text.
TRAINING = Distill(
    hidden=0.0, logits=0.0, labels=1.0, epochs=16, learning_rate=3e-3, batch_size=16, precision="fp32"
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def test_a_score_rises_where_a_weight_moves_away_from_zero() -> None:
    model, inputs = network(), torch.rand(7, 6)
    plain = network()
    plain(inputs).square().sum().backward()
    with scored(model) as found:
        keep_highest({"0.weight": found["0.weight"]}, 0.0)
        model(inputs).square().sum().backward()
        for name, weight in prunable(plain).items():
            # Nothing is removed yet: the gradient of the weights is the plain one.
            assert weight.grad is not None and found[name].scores.grad is not None
            assert torch.allclose(found[name].scores.grad, weight.grad * weight.detach(), atol=1e-6)


def test_a_removed_weight_learns_nothing_and_its_score_does() -> None:
    model = network()
    with scored(model) as found:
        each = found["0.weight"]
        each.kept[0] = False
        assert (model[0].weight[0] == 0).all() and (model[0].weight[1] != 0).all()
        model(torch.rand(7, 6)).square().sum().backward()
        original: Any = model[0].parametrizations.weight.original
        assert (original.grad[0] == 0).all() and (each.scores.grad[0] != 0).all()
    assert (model[0].weight[0] == 0).all() and "0.weight" in dict(model.named_parameters())


def test_the_highest_scores_stay_and_soft_ones_above_the_threshold() -> None:
    with scored(network()) as found:
        with torch.no_grad():
            for each in found.values():
                each.scores.copy_(torch.arange(each.scores.numel()).reshape(each.scores.shape) / 10 - 1)
        keep_highest(found, 0.5)
        for each in found.values():
            assert each.kept.float().mean() == 0.5 and each.kept.flatten()[-1] and not each.kept.flatten()[0]
        keep_above(found, 0.5)
        for each in found.values():
            assert torch.equal(each.kept, each.scores > 0)
        gates = torch.cat([each.scores.sigmoid().flatten() for each in found.values()])
        assert float(mean_gate(found).detach()) == pytest.approx(float(gates.mean().detach()))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A whole student and what its teacher says."""
    folder = tmp_path_factory.mktemp("taught")
    classifier(layers=2).save(folder / "teacher")
    artifact = prepared(folder, SINGLE, train=96).with_part("teacher", folder / "teacher")
    built = BuildStudent(layers=2, vocabulary=None)(artifact, context(folder / "student"))
    return TeacherOutputs(states=(), precision="fp32")(built, context(folder / "outputs"))


def context(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, folder)


STAGES: dict[str, Callable[..., Any]] = {
    "gradual": Magnitude(0.6, training=TRAINING),
    "at once": Magnitude(0.3, gradual=False, scope="layer", training=TRAINING),
    "pattern": Magnitude(pattern="2:4", training=TRAINING),
    "movement": Movement(0.6, training=TRAINING),
    "soft": Movement(soft=True, penalty=30.0, score_rate=0.1, training=TRAINING),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_student_is_pruned_while_it_learns(taught: Artifact, tmp_path: Path, name: str) -> None:
    done = STAGES[name](taught, context(tmp_path / "stage"))
    student = Classifier.load(done.parts["student"], SINGLE, MAX_LENGTH)
    weights = prunable(student.model)
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    sparsity = zeros / sum(weight.numel() for weight in weights.values())
    assert done.figures["pruned"]["sparsity"] == pytest.approx(sparsity)
    if name == "soft":
        assert 0.05 < sparsity < 0.95
    else:
        assert sparsity == pytest.approx({"pattern": 0.5, "at once": 0.3}.get(name, 0.6), abs=0.005)
    assert not any("parametrizations" in key for key in student.model.state_dict())
    train = load_split(done.parts["data"], "train")
    said = student.logits(student.encode(train.texts)).argmax(axis=1)
    assert np.mean(said == np.array(train.labels)) > 0.9


def test_what_cannot_be_is_refused() -> None:
    for broken in ({"threshold": 1.0}, {"penalty": -1.0}, {"score_rate": 0.0}):
        with pytest.raises(RecipeError, match="the threshold must be between 0 and 1"):
            Movement(**broken)
    with pytest.raises(RecipeError, match="is no schedule"):
        Movement(sparsity=1.0)
    with pytest.raises(RecipeError, match="is no schedule"):
        replace(Magnitude(), sparsity=-0.1)

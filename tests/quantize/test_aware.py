"""Training on a grid: where its points lie, what passes through, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pocketlm.artifact import Artifact
from pocketlm.distill.layers import Distill
from pocketlm.distill.teacher_outputs import TeacherOutputs
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier
from pocketlm.models.student import BuildStudent
from pocketlm.quantize.aware import CLIPS, OnGrid, QuantizationAware, highest, on_grid, quantized, scales
from pocketlm.stage import Context
from tests.tiny_models import MAX_LENGTH, SINGLE, classifier, prepared


@given(st.integers(2, 8), st.integers(0, 5))
def test_every_row_has_a_grid_of_its_own_and_reaches_its_end(bits: int, seed: int) -> None:
    weight = (
        torch.randn(6, 400, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-3, 2, 6)[:, None]
    )
    found, scale = on_grid(weight, bits), scales(weight, bits)
    codes = found / scale
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert (codes.abs().amax(dim=1).round() == highest(bits)).all()
    assert torch.allclose(on_grid(3 * weight, bits), 3 * found, rtol=1e-4)


def test_three_values_are_those_of_ternary_weight_networks() -> None:
    weight = torch.tensor([[1.0, -0.2, 0.9, -2.0, 0.1]])  # mean of sizes 0.84, threshold 0.588
    assert torch.allclose(on_grid(weight, 2), torch.tensor([[1.3, 0.0, 1.3, -1.3, 0.0]]))
    assert torch.equal(on_grid(torch.zeros(2, 3), 2), torch.zeros(2, 3))
    assert torch.equal(on_grid(torch.zeros(2, 3), 4), torch.zeros(2, 3))


@pytest.mark.parametrize("bits", sorted(CLIPS))
def test_the_clipping_is_the_best_for_normal_weights(bits: int) -> None:
    weight = torch.randn(1, 1_000_000, generator=torch.Generator().manual_seed(0))

    def error(clip: float) -> float:
        step = clip / highest(bits)
        grid = (weight / step).round().clamp(-highest(bits), highest(bits)) * step
        return float((weight - grid).square().mean())

    best = error(CLIPS[bits])
    assert error(0.9 * CLIPS[bits]) > best < error(1.1 * CLIPS[bits])
    assert float((weight - on_grid(weight, bits)).square().mean()) == pytest.approx(best, rel=0.01)


def test_the_gradient_passes_and_zeros_stay() -> None:
    weight = torch.randn(4, 300)
    weight[:, ::3] = 0
    grid, moving = OnGrid(weight, 4), weight.clone().requires_grad_()
    grid(moving).sum().backward()
    assert torch.equal(moving.grad, (weight != 0).float())
    assert (grid(torch.ones_like(weight))[:, ::3] == 0).all()


def test_an_encoder_is_on_the_grid_while_it_is_trained_and_afterwards() -> None:
    model = classifier().model
    names = {name for name, _ in model.named_parameters()}
    head = model.classifier.weight.detach().clone()
    with quantized(model, 4, 3):
        inside = model.get_input_embeddings().weight.detach()
    assert {name for name, _ in model.named_parameters()} == names
    table = model.get_input_embeddings().weight
    assert torch.equal(table, inside) and all(len(row.detach().unique()) <= 7 for row in table)
    for module in model.base_model.modules():
        if isinstance(module, nn.Linear) and module.weight.numel() >= 1024:
            assert all(len(row.detach().unique()) <= 15 for row in module.weight)
    assert torch.equal(model.classifier.weight, head)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("taught")
    artifact = prepared(folder, SINGLE, train=64, valid=24)
    teacher = folder / "teacher"
    classifier().save(teacher)
    artifact = artifact.with_part("teacher", teacher).with_figures(max_length=MAX_LENGTH)
    for name, stage in (
        ("student", BuildStudent(layers=2, vocabulary=None)),
        ("outputs", TeacherOutputs(precision="fp32")),
    ):
        (folder / name).mkdir()
        artifact = stage(artifact, Context(folder / name, folder / name))
    return artifact


def test_the_stage_trains_on_the_grid(taught: Artifact, tmp_path: Path) -> None:
    training = Distill(epochs=2, learning_rate=1e-3, precision="fp32")
    stage = QuantizationAware(weight_bits=4, embedding_bits=4, training=training)
    found = stage(taught, Context(tmp_path, tmp_path))
    assert found.figures["grid"] == {"weight_bits": 4, "embedding_bits": 4}
    student = Classifier.load(found.parts["student"], SINGLE, MAX_LENGTH)
    table = student.model.get_input_embeddings().weight.detach()
    assert all(len(row.unique()) <= 15 for row in table)
    before = Classifier.load(taught.parts["student"], SINGLE, MAX_LENGTH)
    assert not torch.allclose(on_grid(before.model.get_input_embeddings().weight.detach(), 4), table)
    losses = [point["train_loss"] for point in found.figures["distil"]["curve"]]
    assert losses[-1] < losses[0]


def test_bits_out_of_range_are_told() -> None:
    for fields in ({"weight_bits": 1}, {"embedding_bits": 9}):
        with pytest.raises(RecipeError, match=r"allowed are 2 \(three values\) to 8"):
            replace(QuantizationAware(), **fields)

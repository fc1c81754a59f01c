"""Deep Compression: shared values, their training, and what they take."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pocketlm.artifact import Artifact
from pocketlm.distill.layers import Distill
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier
from pocketlm.quantize.deep_compression import ShareWeights, huffman_bits, shared_values, sharing
from pocketlm.stage import Context
from tests.quantize.test_aware import taught  # noqa: F401
from tests.tiny_models import MAX_LENGTH, SINGLE


def test_weights_take_the_nearest_of_few_values_and_zeros_stay() -> None:
    weight = torch.tensor([[0.0, 1.0, 1.2, -3.0], [0.8, 0.0, -3.2, -2.8]])
    codes, values = shared_values(weight, 2)
    assert torch.allclose(values, torch.tensor([0.0, -3.0, 1.0]))
    assert codes.tolist() == [[0, 2, 2, 1], [2, 0, 1, 1]]


def test_few_different_weights_are_kept_as_they_are() -> None:
    weight = torch.tensor([0.5, 0.0, -0.25, 0.5])
    codes, values = shared_values(weight, 7)
    assert torch.equal(values[codes.long()], weight)
    codes, values = shared_values(torch.zeros(3), 4)
    assert codes.tolist() == [0, 0, 0] and torch.equal(values, torch.zeros(5))


def test_a_value_is_trained_by_all_of_its_weights() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    with torch.no_grad():
        linear.weight[0] = 0
    before = {name: weight.detach().clone() for name, weight in linear.named_parameters()}
    inputs = torch.randn(5, 6)
    with sharing({"map": (linear, "weight")}, 3) as found:
        shared = found["map"]
        linear(inputs).square().sum().backward()
        full = 2 * linear(inputs).detach().T @ inputs  # the gradient of the weights themselves
        wanted = torch.stack([full[shared.codes == code].sum() for code in (1, 2, 3)])
        assert torch.allclose(shared.values.grad, wanted, rtol=1e-4)
        with torch.no_grad():
            shared.values += 1
    assert dict(linear.named_parameters()).keys() == before.keys()
    assert (linear.weight[0] == 0).all() and len(linear.weight.unique()) == 4
    assert linear.weight.requires_grad


@given(st.lists(st.integers(0, 12), min_size=1, max_size=200))
def test_huffmans_code_is_within_a_bit_of_the_entropy(codes: list[int]) -> None:
    shares = [codes.count(code) / len(codes) for code in set(codes)]
    entropy = -sum(share * math.log2(share) for share in shares)
    bits = huffman_bits(torch.tensor(codes)) / len(codes)
    assert max(entropy, 1.0 if len(shares) == 2 else 0.0) - 1e-9 <= bits <= entropy + 1


def test_the_stage_leaves_few_values(taught: Artifact, tmp_path: Path) -> None:  # noqa: F811
    stage = ShareWeights(values=8, training=Distill(epochs=1, learning_rate=1e-3, precision="fp32"))
    found = stage(taught, Context(tmp_path, tmp_path))
    student = Classifier.load(found.parts["student"], SINGLE, MAX_LENGTH)
    for module in student.model.base_model.modules():
        if isinstance(module, nn.Linear) and module.weight.numel() >= 1024:
            assert len(module.weight.unique()) <= 9
    assert found.figures["shared"]["values"] == 8 and found.figures["shared"]["huffman_bytes"] > 0
    for values in (0, 256):
        with pytest.raises(RecipeError, match="allowed: 1 to 255"):
            replace(stage, values=values)

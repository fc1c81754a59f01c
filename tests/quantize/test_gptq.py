"""GPTQ: the columns to come make up for what rounding takes, and the student stays near itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.errors import RecipeError
from pocketlm.models.curvature import DAMPING
from pocketlm.models.load import Classifier
from pocketlm.quantize.aware import on_grid
from pocketlm.quantize.gptq import Gptq, gptq, gram_of
from pocketlm.stage import Context
from tests.tiny_models import MAX_LENGTH, SINGLE, classifier, prepared

CHANCE = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(24, 40, generator=CHANCE)
# Inputs that say nearly the same in many columns, as those of a network do.
INPUTS = torch.randn(40, 6, generator=CHANCE) @ torch.randn(6, 500, generator=CHANCE)
INPUTS += 0.3 * torch.randn(40, 500, generator=CHANCE)


def lost(rounded: Tensor) -> float:
    return float(((WEIGHT - rounded) @ INPUTS).square().sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_less_is_lost_than_by_rounding_to_the_nearest(bits: int) -> None:
    found = gptq(WEIGHT, INPUTS @ INPUTS.T, bits)
    assert lost(found) < 0.7 * lost(on_grid(WEIGHT, bits))
    for row in found:
        assert len(row.unique()) <= 2**bits - 1


def test_columns_that_say_nothing_of_each_other_are_rounded_to_the_nearest() -> None:
    assert torch.allclose(gptq(WEIGHT, torch.eye(40), 4), on_grid(WEIGHT, 4), atol=1e-6)


def test_one_column_after_the_other_is_the_best_answer_to_the_last() -> None:
    """With all columns but the last two exact, the last makes up for the one before it (least squares)."""
    gram = INPUTS @ INPUTS.T
    found = gptq(WEIGHT, gram, 8, group=1)  # a scale each: every column is on its own grid, exactly
    assert torch.allclose(found, WEIGHT, atol=1e-5)
    # By hand for two inputs: the second weight goes where the error of the first is smallest.
    pair, both = torch.tensor([[0.4, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    damped = both + DAMPING * 2.0 * torch.eye(2)
    scale = on_grid(pair, 8).abs().max() / 127
    first = (0.4 / scale).round() * scale
    second = 1.0 + (0.4 - first) * damped[0, 1] / damped[1, 1]
    wanted = torch.stack([first, (second / scale).round() * scale])
    assert torch.allclose(gptq(pair, both, 8)[0], wanted, atol=1e-6)


def test_groups_have_scales_of_their_own() -> None:
    weight = WEIGHT * torch.cat([torch.ones(20), torch.full((20,), 1e-3)])
    found = gptq(weight, torch.eye(40), 4, group=20)
    assert (found[:, 20:] != 0).float().mean() > 0.7
    assert (gptq(weight, torch.eye(40), 4)[:, 20:] == 0).all()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("student")
    classifier(layers=2, hidden_size=64, intermediate_size=128).save(folder / "student")
    artifact = prepared(folder, SINGLE, train=64, valid=24).with_figures(max_length=MAX_LENGTH)
    return artifact.with_part("student", folder / "student")


def test_the_stage_rounds_every_map_and_table(student: Artifact, tmp_path: Path) -> None:
    done = Gptq(weight_bits=3, embedding_bits=4, texts=48)(student, Context(tmp_path, tmp_path))
    assert done.figures["grid"] == {"weight_bits": 3, "embedding_bits": 4}
    before, after = (Classifier.load(one.parts["student"], SINGLE, MAX_LENGTH) for one in (student, done))
    nearest = Classifier.load(student.parts["student"], SINGLE, MAX_LENGTH)
    for module, other in zip(
        after.model.base_model.modules(), nearest.model.base_model.modules(), strict=True
    ):
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.numel() >= 1024:
            bits = 4 if isinstance(module, nn.Embedding) else 3
            assert all(len(row.detach().unique()) <= 2**bits - 1 for row in module.weight)
            other.weight.data.copy_(on_grid(other.weight.detach(), bits))
    encoded = before.encode(load_split(student.parts["data"], "train").texts[:48])
    wanted, got, plain = (one.logits(encoded) for one in (before, after, nearest))
    assert np.abs(got - wanted).mean() < 0.8 * np.abs(plain - wanted).mean()


def test_padding_is_in_no_gram(student: Artifact) -> None:
    made = Classifier.load(student.parts["student"], SINGLE, MAX_LENGTH)
    linear = next(m for m in made.model.base_model.modules() if isinstance(m, nn.Linear))
    texts = [("a film",), ("a film of the night and the story",)]
    together = gram_of(made, made.encode(texts), linear)
    alone = sum(gram_of(made, made.encode([text]), linear) for text in texts)
    assert torch.allclose(together, torch.as_tensor(alone), rtol=1e-4)


@pytest.mark.parametrize("fields", [{"weight_bits": 1}, {"embedding_bits": 9}, {"texts": 0}])
def test_what_is_out_of_range_is_told(fields: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=r"allowed"):
        Gptq(**fields)

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pocketlm.distill.inner import (
    forget_inner,
    mean_loss,
    projections_of,
    save_tensors,
    train_inner,
)
from pocketlm.stage import Context
from pocketlm.train import Settings
from tests.tiny_models import classifier

SETTINGS = Settings(epochs=4, learning_rate=0.05, batch_size=5, precision="fp32", warmup=0.0)
INPUTS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def parts() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    return nn.Linear(3, 2), nn.ModuleList([nn.Linear(2, 3, bias=False)])


def learn(folder: Path, fails: bool = False) -> tuple[dict[str, Tensor], list[float]]:
    """Copy three numbers through a narrow model and a projection."""
    model, projections = parts()

    def loss(model: nn.Module, rows: object) -> Tensor:
        assert not fails, "trained again"
        inputs = INPUTS[list(rows)]  # pyright: ignore
        return ((projections[0](model(inputs)) - inputs) ** 2).mean(dim=-1)

    curve = train_inner(model, projections, loss, [1] * 20, SETTINGS, Context(folder, folder), "learn")
    weights = {**model.state_dict(), "projection": projections[0].weight.detach()}
    return weights, [point.valid_score for point in curve]


def test_a_finished_phase_is_found_again(tmp_path: Path) -> None:
    weights, scores = learn(tmp_path)
    assert len(scores) == 4 and scores[-1] > scores[0]
    again, told = learn(tmp_path, fails=True)
    assert told == scores
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    fresh = parts()[1].state_dict()["0.weight"]
    assert not torch.equal(weights["projection"], fresh)
    forget_inner(Context(tmp_path, tmp_path))
    with pytest.raises(AssertionError, match="trained again"):
        learn(tmp_path, fails=True)


def test_a_mean_loss_weighs_every_example_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlm.distill.inner.EVALUATION_BATCH", 3)
    found = mean_loss(nn.Identity(), lambda _, rows: torch.tensor([float(row) for row in rows]), range(10))
    assert found == pytest.approx(4.5)


def test_projections_follow_from_the_seed() -> None:
    model = classifier().model
    one, two, other = (projections_of(model, 2, 5, seed) for seed in (1, 1, 2))
    assert [tuple(part.weight.shape) for part in one] == [(5, 32), (5, 32)]
    assert torch.equal(one[1].weight, two[1].weight) and not torch.equal(one[0].weight, other[0].weight)
    assert all(part.bias is None for part in one)


def test_tensors_are_whole_or_absent(tmp_path: Path) -> None:
    save_tensors({"a": torch.ones(2)}, tmp_path / "new" / "x.safetensors", told="yes")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]

"""Magnitude pruning: the schedule, and a network that loses weights while it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pocketlm.errors import RecipeError
from pocketlm.progress import Quiet
from pocketlm.prune.magnitude import Cubic, magnitude_masks, parsed_pattern, pruned_gradually
from pocketlm.prune.masks import prunable, sparsity_of
from pocketlm.train import Point, Settings, train
from tests.tiny import NO_DEADLINE, KilledError


@NO_DEADLINE
@given(st.floats(0, 0.99), st.floats(0, 0.4), st.floats(0.5, 1), st.integers(1, 500))
def test_the_sparsity_rises_from_its_start_to_its_end(
    final: float, start: float, end: float, steps: int
) -> None:
    schedule = Cubic(final, start, end)
    values = [schedule(step, steps) for step in range(steps + 1)]
    assert values == sorted(values)
    assert all(value == 0 for step, value in enumerate(values) if step < start * steps)
    assert all(v == pytest.approx(final) for step, v in enumerate(values) if step >= end * steps)


def test_the_schedule_is_zhu_and_guptas() -> None:
    schedule = Cubic(0.8, start=0.0, end=1.0, initial=0.2)
    assert schedule(0, 10) == pytest.approx(0.2)
    assert schedule(5, 10) == pytest.approx(0.8 - 0.6 * 0.125)
    for broken in ({"final": 1.0}, {"final": 0.5, "initial": 0.6}, {"final": 0.5, "start": 0.7, "end": 0.6}):
        with pytest.raises(RecipeError, match="is no schedule; allowed"):
            Cubic(**broken)


def test_masks_by_magnitude_with_and_without_a_pattern() -> None:
    model = network()
    masks = magnitude_masks(model, 0.6)
    weights = {name: weight.abs() for name, weight in prunable(model).items()}
    kept = torch.cat([weights[name][mask] for name, mask in masks.items()])
    gone = torch.cat([weights[name][~mask] for name, mask in masks.items()])
    assert gone.max() <= kept.min() and sparsity_of(masks) == pytest.approx(0.6, abs=0.01)
    assert sparsity_of(magnitude_masks(model, 0.0, pattern="2:4")) == 0.5
    assert parsed_pattern("1:8") == (1, 8)
    for broken in ("2-4", "a:b", "2:"):
        with pytest.raises(RecipeError, match="is not of the form 2:4"):
            parsed_pattern(broken)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


def trained(
    folder: Path, killed_at: int | None = None, final: float = 0.9
) -> tuple[nn.Module, list[Point], list[float]]:
    """Learn which of four groups of inputs is largest, with 90 % of the weights gone at the end."""
    model = network()
    inputs = torch.rand(96, 8, generator=torch.Generator().manual_seed(1))
    targets = inputs.reshape(96, 4, 2).sum(dim=2).argmax(dim=1)
    zeros: list[float] = []

    def share() -> float:
        found = [weight.detach() == 0 for weight in prunable(model).values()]
        return float(torch.cat([gone.flatten() for gone in found]).float().mean())

    def loss(module: nn.Module, indices) -> torch.Tensor:
        zeros.append(share())
        if len(zeros) == killed_at:
            raise KilledError
        return nn.functional.cross_entropy(module(inputs[indices]), targets[indices], reduction="none")

    def score() -> float:
        return float((model(inputs).argmax(dim=1) == targets).float().mean())

    settings = Settings(epochs=30, learning_rate=1e-2, batch_size=16, precision="fp32", evaluations=1)
    with pruned_gradually(model, Cubic(final)) as each_step:
        curve = train(
            model,
            loss,
            [1] * 96,
            settings,
            score,
            folder,
            Quiet(),
            "",
            each_step=each_step,
            kept_from=0.7,
        )
    return model, curve, [*zeros, share()]


def test_a_network_loses_weights_while_it_trains_and_none_comes_back(tmp_path: Path) -> None:
    _, curve, zeros = trained(tmp_path)
    assert zeros == sorted(zeros) and zeros[0] == 0
    assert zeros[-1] == pytest.approx(0.9, abs=0.01)
    best = max(point.valid_score for point in curve if point.step >= 0.7 * curve[-1].step)
    assert best > 0.5  # of four groups
    # Some evaluation before the end was better, and is not what was kept.
    assert max(point.valid_score for point in curve) >= best


def test_a_killed_pruning_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlm.train.CHECKPOINT_SECONDS", 0.0)
    whole, _, _ = trained(tmp_path / "whole")
    with pytest.raises(KilledError):
        trained(tmp_path / "killed", killed_at=77)
    again, _, _ = trained(tmp_path / "killed")
    for name, weight in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_a_whole_network_is_not_pruned(tmp_path: Path) -> None:
    _, _, zeros = trained(tmp_path, final=0.0)
    assert set(zeros) == {0.0}

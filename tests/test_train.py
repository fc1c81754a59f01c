from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pocketlm.errors import RecipeError, StorageError
from pocketlm.progress import Quiet
from pocketlm.train import Loss, Point, Settings, _is_evaluation, _schedule, has_bf16, train
from tests.tiny import NO_DEADLINE, KilledError

SOURCE = Path(__file__).resolve().parent.parent / "src"
EXAMPLES, WIDTH, LABELS = 22, 6, 3
LENGTHS = [1 + (7 * index) % 11 for index in range(EXAMPLES)]
# Batches of 4, 4, 4, 4, 4 and 2: a short one in every epoch.
SETTINGS = Settings(epochs=3, learning_rate=0.02, batch_size=4, precision="fp32", evaluations=2)
STEPS = 18


def a_model(seed: int = 0, dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(WIDTH, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, LABELS)
    )


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(EXAMPLES, WIDTH, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


X, Y = data()


def cross_entropy(model: nn.Module, indices: Sequence[int]) -> Tensor:
    rows = list(indices)
    return F.cross_entropy(model(X[rows]), Y[rows], reduction="none")


def score_of(model: nn.Module) -> Callable[[], float]:
    return lambda: -float(F.cross_entropy(model(X), Y))


def run(
    model: nn.Module,
    folder: Path,
    settings: Settings = SETTINGS,
    loss: Loss = cross_entropy,
    evaluate: Callable[[], float] | None = None,
    loss_parameters: nn.Module | None = None,
) -> list[Point]:
    return train(
        model, loss, LENGTHS, settings, evaluate or score_of(model), folder, Quiet(), "test", loss_parameters
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    for name in first:
        assert (first[name] - second[name]).abs().max() <= tolerance, name


def killed_at(call: int, loss: Loss = cross_entropy) -> Loss:
    calls = 0

    def killing(model: nn.Module, indices: Sequence[int]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KilledError
        return loss(model, indices)

    return killing


@pytest.fixture
def always_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlm.train.CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[Point]]:
    model = a_model()
    curve = run(model, tmp_path_factory.mktemp("whole"))
    return weights(model), curve


# Before any step, mid-epoch, right after an evaluation (every third step), at an epoch's end (every sixth).
@pytest.mark.parametrize("call", [1, 2, 3, 4, 6, 7, 8, 13, STEPS])
@pytest.mark.usefixtures("always_checkpoint")
def test_a_killed_run_ends_bit_for_bit_like_a_whole_one(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], list[Point]], call: int
) -> None:
    with pytest.raises(KilledError):
        run(a_model(), tmp_path, loss=killed_at(call))
    assert (tmp_path / "checkpoint.safetensors").exists() == (call > 1)
    # Another process starts with other random numbers and, but for the seeding, other weights.
    torch.rand(call)
    resumed = a_model(0 if call == 1 else 99)
    calls = 0

    def counting(model: nn.Module, indices: Sequence[int]) -> Tensor:
        nonlocal calls
        calls += 1
        return cross_entropy(model, indices)

    curve = run(resumed, tmp_path, loss=counting)
    assert calls == STEPS - (call - 1)
    assert_same(weights(resumed), uninterrupted[0])
    assert curve == uninterrupted[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("always_checkpoint")
def test_a_run_killed_again_and_again_ends_the_same(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], list[Point]]
) -> None:
    for seed in range(STEPS // 3 - 1):
        with pytest.raises(KilledError):
            run(a_model(seed), tmp_path, loss=killed_at(4))
    last = a_model(77)
    assert run(last, tmp_path) == uninterrupted[1]
    assert_same(weights(last), uninterrupted[0])


def test_steps_after_the_last_checkpoint_are_done_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[dict[str, Tensor], list[Point]],
) -> None:
    def no_more_checkpoints(model: nn.Module, indices: Sequence[int]) -> Tensor:
        nonlocal calls
        calls += 1
        monkeypatch.setattr("pocketlm.train.CHECKPOINT_SECONDS", 0.0 if calls <= 5 else 1e9)
        if calls == 9:
            raise KilledError
        return cross_entropy(model, indices)

    calls = 0
    with pytest.raises(KilledError):
        run(a_model(), tmp_path, loss=no_more_checkpoints)
    resumed = a_model(99)
    curve = run(resumed, tmp_path)
    assert_same(weights(resumed), uninterrupted[0])
    assert curve == uninterrupted[1]


@pytest.mark.usefixtures("always_checkpoint")
def test_a_run_killed_in_an_evaluation_ends_the_same(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], list[Point]]
) -> None:
    model, calls = a_model(), 0

    def evaluate() -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KilledError
        return score_of(model)()

    with pytest.raises(KilledError):
        run(model, tmp_path, evaluate=evaluate)
    resumed = a_model(99)
    assert run(resumed, tmp_path) == uninterrupted[1]
    assert_same(weights(resumed), uninterrupted[0])


@pytest.mark.usefixtures("always_checkpoint")
def test_a_run_killed_behind_its_last_step_is_not_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[dict[str, Tensor], list[Point]]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("accelerate.Accelerator.wait_for_everyone", killing)
        with pytest.raises(KilledError):
            run(a_model(), tmp_path)
    resumed = a_model(99)
    assert run(resumed, tmp_path, loss=killed_at(1)) == uninterrupted[1]
    assert_same(weights(resumed), uninterrupted[0])


def killing(*_: object) -> None:
    raise KilledError


@pytest.mark.usefixtures("always_checkpoint")
def test_a_stopped_run_stays_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(epochs=5, learning_rate=0.01, batch_size=11, patience=1, precision="fp32")
    whole = a_model()
    curve = run(whole, tmp_path / "whole", settings, evaluate=falling())
    with monkeypatch.context() as patch:
        patch.setattr("accelerate.Accelerator.wait_for_everyone", killing)
        with pytest.raises(KilledError):
            run(a_model(), tmp_path / "killed", settings, evaluate=falling())
    resumed = a_model(99)
    assert run(resumed, tmp_path / "killed", settings, loss=killed_at(1), evaluate=killing) == curve
    assert len(curve) == 2
    assert_same(weights(resumed), weights(whole))


def falling() -> Callable[[], float]:
    scores = iter(range(0, -100, -1))
    return lambda: float(next(scores))


@pytest.mark.usefixtures("always_checkpoint")
def test_shared_and_frozen_weights_and_the_losss_own_survive_a_kill(tmp_path: Path) -> None:
    def parts(seed: int) -> tuple[nn.Sequential, nn.Linear]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2))
        model[2].weight = model[0].weight
        model[2].bias.requires_grad_(False)
        return model, nn.Linear(WIDTH, LABELS)

    def loss_with(own: nn.Module) -> Loss:
        return lambda model, rows: F.cross_entropy(own(model(X[list(rows)])), Y[list(rows)], reduction="none")

    whole, own = parts(0)
    run(whole, tmp_path / "a", loss=loss_with(own), evaluate=rising(), loss_parameters=own)
    killed, other = parts(0)
    with pytest.raises(KilledError):
        run(
            killed,
            tmp_path / "b",
            loss=killed_at(9, loss_with(other)),
            evaluate=rising(),
            loss_parameters=other,
        )
    resumed, mine = parts(99)
    # Five evaluations are left of six.
    run(resumed, tmp_path / "b", loss=loss_with(mine), evaluate=rising(100), loss_parameters=mine)
    assert_same(weights(resumed), weights(whole))
    assert_same(weights(mine), weights(own))
    assert resumed[0].weight is resumed[2].weight


def rising(start: int = 0) -> Callable[[], float]:
    scores = iter(range(start, start + 1000))
    return lambda: float(next(scores))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    ends = []
    for seed in (0, 0, 1):
        model = a_model()
        run(
            model, tmp_path, Settings(epochs=2, learning_rate=0.02, batch_size=4, seed=seed, precision="fp32")
        )
        ends.append(weights(model))
    assert_same(ends[0], ends[1])
    assert not torch.equal(ends[0]["0.weight"], ends[2]["0.weight"])


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 100])
def test_accumulation_equals_the_whole_batch(tmp_path: Path, micro_batch: int) -> None:
    whole, parts = a_model(dropout=0.0), a_model(dropout=0.0)
    curve = run(whole, tmp_path)
    other = run(parts, tmp_path, Settings(**{**vars(SETTINGS), "micro_batch": micro_batch}))
    assert_close(weights(whole), weights(parts), 2e-5)
    for one, two in zip(curve, other, strict=True):
        assert one.step == two.step
        assert one.train_loss == pytest.approx(two.train_loss, abs=1e-5)


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_every_example_of_a_batch_weighs_alike(tmp_path: Path, micro_batch: int | None) -> None:
    """The gradient of w · cᵢ, summed over backward passes, is the mean of c over the global batch."""
    c = torch.arange(1.0, EXAMPLES + 1)
    model = nn.Linear(1, 1, bias=False)
    batches: list[list[int]] = []
    seen = torch.zeros(EXAMPLES)
    gradients: list[float] = []
    model.weight.register_hook(lambda gradient: gradients.append(float(gradient)))

    def loss(network: nn.Module, indices: Sequence[int]) -> Tensor:
        batches.append(list(indices))
        seen[list(indices)] += 1
        return network(c[list(indices), None]).squeeze(-1)

    settings = Settings(
        epochs=1, learning_rate=1e-9, batch_size=4, micro_batch=micro_batch, precision="fp32", evaluations=6
    )
    curve = run(model, tmp_path, settings, loss, evaluate=lambda: 0.0)
    assert torch.equal(seen, torch.ones(EXAMPLES))
    # Global batches again: 5 of 4 examples and one of 2, in any order.
    start = 0
    sizes = []
    for point in curve:
        rows: list[int] = []
        summed = 0.0
        size = 2 if sum(map(len, batches[start:])) == 2 else 4
        # The short batch stands where the losses say so: take passes until the mean fits.
        while len(rows) < size:
            rows += batches[start]
            summed += gradients[start]
            start += 1
            if len(rows) == 2 and summed == pytest.approx(float(c[rows].mean()), rel=1e-5):
                break
        sizes.append(len(rows))
        assert summed == pytest.approx(float(c[rows].mean()), rel=1e-5)
        assert point.train_loss == pytest.approx(float((c[rows] * model.weight.item()).mean()), rel=1e-4)
    assert sorted(sizes) == [2, 4, 4, 4, 4, 4]


def test_the_curve_tells_the_mean_loss_since_the_point_before(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    losses: list[float] = []

    def loss(network: nn.Module, indices: Sequence[int]) -> Tensor:
        losses.append(float(len(losses)))
        return torch.full((len(indices),), losses[-1]) + 0 * network.weight.sum()

    curve = run(model, tmp_path, loss=loss, evaluate=lambda: 0.5)
    assert [point.step for point in curve] == [3, 6, 9, 12, 15, 18]
    for point in curve:
        assert point.train_loss == pytest.approx(sum(losses[point.step - 3 : point.step]) / 3)
        assert point.valid_score == 0.5


@pytest.mark.parametrize(
    ("scores", "patience", "evaluated", "best"),
    [
        ([1, 2, 3, 4, 5, 6], None, 6, 5),
        ([1, 3, 2, 1, 0, 0], None, 6, 1),
        ([1, 3, 2, 1, 9, 9], 2, 4, 1),
        ([1, 3, 2, 4, 3, 9], 2, 6, 5),
        ([5, 4, 9, 9, 9, 9], 1, 2, 0),
        # Of equal scores the first is kept, and waiting goes on.
        ([2, 2, 2, 2, 2, 2], 3, 4, 0),
        ([-5, -4, -6, -7, -8, 0], 2, 4, 1),
    ],
)
def test_the_best_weights_are_kept(
    tmp_path: Path, scores: list[int], patience: int | None, evaluated: int, best: int
) -> None:
    model = a_model()
    snapshots: list[dict[str, Tensor]] = []

    def evaluate() -> float:
        assert not model.training
        snapshots.append(weights(model))
        return float(scores[len(snapshots) - 1])

    settings = Settings(epochs=6, learning_rate=0.05, batch_size=8, patience=patience, precision="fp32")
    curve = run(model, tmp_path, settings, evaluate=evaluate)
    assert [point.valid_score for point in curve] == scores[:evaluated]
    assert_same(weights(model), snapshots[best])


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors.partial").write_bytes(b"half")
    run(a_model(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = a_model()
    model[0].weight.requires_grad_(False)
    before = weights(model)
    run(model, tmp_path, evaluate=rising())
    after = weights(model)
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert all(not torch.equal(before[name], after[name]) for name in before if name != "0.weight")


def test_parameters_that_no_loss_touches_stay_but_for_decay(tmp_path: Path) -> None:
    model = nn.ModuleDict({"used": nn.Linear(WIDTH, LABELS), "idle": nn.Linear(2, 2)})
    before = weights(model)

    def loss(network: nn.Module, indices: Sequence[int]) -> Tensor:
        rows = list(indices)
        return F.cross_entropy(network["used"](X[rows]), Y[rows], reduction="none")

    run(model, tmp_path, loss=loss, evaluate=rising())
    after = weights(model)
    assert torch.equal(before["idle.bias"], after["idle.bias"])
    assert not torch.equal(before["used.bias"], after["used.bias"])


def test_the_losss_own_parameters_are_trained_and_their_best_kept(tmp_path: Path) -> None:
    model, own = a_model(dropout=0.0), nn.Linear(LABELS, 1)
    snapshots: list[dict[str, Tensor]] = []
    before = weights(own)

    def loss(network: nn.Module, indices: Sequence[int]) -> Tensor:
        return (own(network(X[list(indices)])).squeeze(-1) - X[list(indices), 2]) ** 2

    def evaluate() -> float:
        snapshots.append(weights(own))
        return [1.0, 2.0, 0.0, 0.0, 0.0, 0.0][len(snapshots) - 1]

    run(model, tmp_path, loss=loss, evaluate=evaluate, loss_parameters=own)
    assert not torch.equal(before["weight"], snapshots[0]["weight"])
    assert_same(weights(own), snapshots[1])
    assert not torch.equal(snapshots[1]["weight"], snapshots[-1]["weight"])


def test_weight_decay_and_schedule_shrink_matrices_only(tmp_path: Path) -> None:
    """With a gradient of zero, AdamW leaves w · Π(1 - rate · decay)."""
    model = nn.Linear(3, 3)
    before = weights(model)

    def loss(network: nn.Module, indices: Sequence[int]) -> Tensor:
        return torch.zeros(len(indices)) + 0 * (network.weight.sum() + network.bias.sum())

    settings = Settings(
        epochs=2, learning_rate=0.5, batch_size=4, weight_decay=0.2, warmup=0.25, precision="fp32"
    )
    run(model, tmp_path, settings, loss, evaluate=rising())
    steps, rising_steps, factor = 12, 3.0, 1.0
    for step in range(steps):
        up, down = (step + 1) / (rising_steps + 1), (steps - step) / (steps - rising_steps)
        factor *= 1 - 0.5 * min(up, down) * 0.2
    assert torch.allclose(model.weight, before["weight"] * factor, rtol=1e-5)
    assert torch.equal(model.bias, before["bias"])


def test_a_factor_is_one_of_the_learning_rate(tmp_path: Path) -> None:
    """A run in which some parameters have a factor moves them, in its first step, so much further."""
    ends: list[dict[str, Tensor]] = []
    settings = Settings(epochs=1, learning_rate=0.001, batch_size=EXAMPLES, precision="fp32", warmup=0.0)
    for place, factor in (("a", None), ("b", 5.0)):
        model = a_model(dropout=0.0)
        factors = {model[0].bias: factor, model[0].weight: factor} if factor else None
        before = weights(model)
        train(
            model, cross_entropy, LENGTHS, settings, rising(), tmp_path / place, Quiet(), "test",
            factors=factors,
        )  # fmt: skip
        ends.append({name: tensor - before[name] for name, tensor in weights(model).items()})
    plain, fast = ends
    assert torch.allclose(fast["0.bias"], 5 * plain["0.bias"], rtol=1e-3)
    assert fast["0.weight"].abs().mean() > 4 * plain["0.weight"].abs().mean()
    assert torch.equal(fast["4.bias"], plain["4.bias"])


def test_clipping_leaves_the_direction(tmp_path: Path) -> None:
    settings = Settings(epochs=1, learning_rate=0.02, batch_size=4, clip=1e-3, precision="fp32")
    ends = []
    for factor in (1.0, 1000.0):
        model = a_model(dropout=0.0)
        run(model, tmp_path, settings, lambda m, rows, by=factor: by * cross_entropy(m, rows), rising())
        ends.append(weights(model))
    assert_close(*ends, tolerance=1e-4)


@given(steps=st.integers(1, 300), warmup=st.floats(0, 0.99))
@NO_DEADLINE
def test_the_schedule_rises_then_falls_and_never_is_zero(steps: int, warmup: float) -> None:
    factors = [_schedule(step, steps, warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert abs(top - warmup * steps) <= 1


def test_schedule_values() -> None:
    assert [_schedule(step, 4, 0.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [_schedule(step, 8, 0.25) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 5 / 6])


@given(steps_per_epoch=st.integers(1, 40), evaluations=st.integers(1, 50))
@NO_DEADLINE
def test_evaluations_are_spread_over_every_epoch_and_close_it(steps_per_epoch: int, evaluations: int) -> None:
    flags = [_is_evaluation(step, steps_per_epoch, evaluations) for step in range(1, 2 * steps_per_epoch + 1)]
    first, second = flags[:steps_per_epoch], flags[steps_per_epoch:]
    assert first == second
    assert first[-1]
    assert sum(first) == min(evaluations, steps_per_epoch)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("auto", torch.bfloat16 if has_bf16() else torch.float32),
    ],
)
def test_precision(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    model = a_model()
    dtypes = set()

    def loss(network: nn.Module, indices: Sequence[int]) -> Tensor:
        logits = network(X[list(indices)])
        dtypes.add(logits.dtype)
        return F.cross_entropy(logits.float(), Y[list(indices)], reduction="none")

    settings = Settings(epochs=1, learning_rate=0.01, batch_size=8, precision=precision)  # pyright: ignore
    run(model, tmp_path, settings, loss)
    assert dtypes == {dtype}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_progress_counts_every_step_and_what_was_done_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.train.CHECKPOINT_SECONDS", 0.0)
    told: list[tuple[str, int, int]] = []
    advanced: list[int] = []

    class Recorder(Quiet):
        @contextmanager
        def task(self, description: str, total: int, done: int = 0):
            told.append((description, total, done))
            yield advanced.append

    model = a_model()
    with pytest.raises(KilledError):
        train(model, killed_at(6), LENGTHS, SETTINGS, score_of(model), tmp_path, Recorder(), "first")
    assert sum(advanced) == 5
    train(model, cross_entropy, LENGTHS, SETTINGS, score_of(model), tmp_path, Recorder(), "second")
    assert told == [("first", STEPS, 0), ("second", STEPS, 5)]
    assert sum(advanced) == STEPS


@pytest.mark.usefixtures("always_checkpoint")
def test_a_full_disk_is_told_and_the_checkpoint_before_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[dict[str, Tensor], list[Point]]
) -> None:
    calls = 0

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr("pocketlm.train.save_file", full)
        with pytest.raises(
            StorageError, match=r"checkpoint.*: the disk is full; .* run the same command again"
        ):
            run(a_model(), tmp_path)
    resumed = a_model(99)
    assert run(resumed, tmp_path) == uninterrupted[1]
    assert_same(weights(resumed), uninterrupted[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs=0 is out of range; it must be above 0"),
        ({"epochs": -1}, "epochs=-1 is out of range"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is out of range; it must be above 0"),
        ({"batch_size": 0}, "batch_size=0 is out of range; it must be above 0"),
        ({"clip": -1.0}, "clip=-1.0 is out of range; it must be above 0"),
        ({"evaluations": 0}, "evaluations=0 is out of range; it must be above 0"),
        ({"warmup": 1.0}, "warmup=1.0 is out of range; allowed: 0 up to below 1"),
        ({"warmup": -0.1}, "warmup=-0.1 is out of range; allowed: 0 up to below 1"),
        ({"micro_batch": 0}, "micro_batch=0 is out of range; it must be above 0, or null"),
        ({"micro_batch": -4}, "micro_batch=-4 is out of range; it must be above 0, or null"),
        ({"patience": 0}, "patience=0 is out of range; it must be above 0, or null"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 is out of range; it must be 0 or more"),
        ({"seed": -1}, "seed=-1 is out of range; it must be 0 or more"),
    ],
)
def test_settings_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        Settings(**{"epochs": 1, "learning_rate": 0.1, **values})  # pyright: ignore
    assert message in str(error.value)


SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, {root!r})
from accelerate import PartialState
from safetensors.torch import save_file

from tests import test_train as t

model = t.a_model(dropout=0.0)
folder = Path(sys.argv[1])
points = t.run(model, folder / "checkpoints", t.DISTRIBUTED)
state = PartialState()
assert state.num_processes == 2
save_file(t.weights(model), folder / f"{{state.process_index}}.safetensors")
(folder / f"{{state.process_index}}.txt").write_text(repr([p.train_loss for p in points]))
"""
# 22 examples in batches of 3 leave one: in that batch, one process has nothing to do.
DISTRIBUTED = Settings(epochs=2, learning_rate=0.02, batch_size=3, precision="fp32")


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(SOURCE.parent)))
    command = [
        # `--multi_gpu` is what makes it start processes; without a GPU they talk through the CPU.
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--main_process_port", "0"),
        *(str(script), str(tmp_path)),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    one = a_model(dropout=0.0)
    curve = run(one, tmp_path / "one", DISTRIBUTED)
    first, second = load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "1.safetensors")
    assert_same(first, second)
    assert_close(first, weights(one), 1e-5)
    for rank in (0, 1):
        told = eval((tmp_path / f"{rank}.txt").read_text())
        assert told == pytest.approx([point.train_loss for point in curve], abs=1e-5)
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())

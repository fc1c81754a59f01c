from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pocketlm import timing
from pocketlm.errors import InputError
from pocketlm.timing import Timings, interleave, throughput


class Clock:
    """A clock that only the timed callables move, so that times are exact."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns = 0
        monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: self.ns)

    def takes(self, ms: float) -> None:
        self.ns += round(ms * 1e6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_each_round_gives_all_the_same_input_in_turning_order() -> None:
    calls: list[tuple[str, int]] = []
    runs = {name: (lambda index, name=name: calls.append((name, index))) for name in "ABC"}
    timings = interleave(runs, inputs=3, rounds=4, warmup=0)
    assert all(
        before == (name, (index - 1) % 3)
        for before, (name, index) in zip(calls[::2], calls[1::2], strict=True)
    )
    timed = calls[1::2]
    rounds = [timed[start : start + 3] for start in range(0, len(timed), 3)]
    assert ["".join(name for name, _ in round_) for round_ in rounds] == ["ABC", "CBA", "ABC", "CBA"]
    assert [{index for _, index in round_} for round_ in rounds] == [{0}, {1}, {2}, {0}]
    assert all(len(ms) == 4 for ms in timings.ms.values())


@pytest.mark.parametrize("inputs", [1, 2, 3, 8])
def test_every_input_meets_both_orders_equally(inputs: int) -> None:
    first: dict[int, list[str]] = {index: [] for index in range(inputs)}
    calls: list[str] = []
    runs = {name: (lambda index, name=name: calls.append(f"{name}{index}")) for name in "AB"}
    interleave(runs, inputs, rounds=4 * inputs, warmup=0)
    for call in calls[1::4]:
        first[int(call[1:])].append(call[0])
    assert all(sorted(names) == ["A", "A", "B", "B"] for names in first.values())


def test_warm_ups_run_and_are_not_counted(clock: Clock) -> None:
    calls: list[int] = []

    def run(index: int) -> None:
        calls.append(index)
        clock.takes(100 if len(calls) % 2 or len(calls) <= 4 else 1)

    timings = interleave({"A": run}, inputs=5, rounds=3, warmup=2)
    assert timings.ms["A"] == [1, 1, 1]
    assert calls == [2, 3, 3, 4, 4, 0, 0, 1, 1, 2]


def test_drift_cancels_in_the_ratio(clock: Clock) -> None:
    drift = 1.0

    def run(ms: float) -> None:
        nonlocal drift
        drift *= 1.003
        clock.takes(ms * drift)

    timings = interleave({"pocket": lambda _: run(1), "teacher": lambda _: run(4)}, 7, rounds=200, warmup=0)
    assert timings.ms["pocket"][-1] > 3 * timings.ms["pocket"][0]
    ratio = timings.ratio("teacher", "pocket")
    assert ratio.median == pytest.approx(4, rel=0.005)
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.high - ratio.low < 0.05


def test_percentiles_and_ratio_of_given_times() -> None:
    timings = Timings({"a": [float(ms) for ms in range(1, 101)], "b": [2.0 * ms for ms in range(1, 101)]})
    assert timings.p50("a") == 50.5
    assert timings.p95("a") == pytest.approx(95.05)
    assert (timings.ratio("b", "a").low, timings.ratio("b", "a").high) == (2, 2)
    assert timings.ratio("a", "b").median == 0.5


def test_a_noisy_ratio_has_an_interval_around_its_median() -> None:
    noise = np.random.default_rng(0).lognormal(sigma=0.2, size=(2, 200))
    ratio = Timings({"a": (3 * noise[0]).tolist(), "b": noise[1].tolist()}).ratio("a", "b")
    assert 2.5 < ratio.low < ratio.median < ratio.high < 3.5


def test_throughput_counts_texts_of_full_batches(clock: Clock) -> None:
    batches: list[list[int]] = []

    def slow(rows: Sequence[int]) -> None:
        batches.append(list(rows))
        clock.takes(4 * len(rows))

    def quick(rows: Sequence[int]) -> None:
        clock.takes(len(rows))

    result = throughput({"slow": slow, "quick": quick}, inputs=11, batch_size=4, rounds=3, warmup=0)
    assert batches[1::2] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert result.texts_per_second("slow") == pytest.approx(250)
    assert result.texts_per_second("quick") == pytest.approx(1000)
    assert result.ratio("quick", "slow").median == pytest.approx(4)


def test_throughput_takes_a_small_split_as_one_batch(clock: Clock) -> None:
    result = throughput({"a": lambda rows: clock.takes(len(rows))}, inputs=5, batch_size=32, rounds=2)
    assert result.texts == 10
    assert result.texts_per_second("a") == pytest.approx(1000)


def test_nothing_to_time_is_told() -> None:
    def run(index: object) -> None:
        del index

    with pytest.raises(InputError, match="nothing to time: 1 callables, inputs=0, rounds=1"):
        interleave({"a": run}, inputs=0, rounds=1, warmup=0)
    with pytest.raises(InputError, match="nothing to time: 0 callables"):
        interleave({}, inputs=1, rounds=1, warmup=0)
    with pytest.raises(InputError, match="nothing to time"):
        throughput({"a": run}, inputs=0)
    with pytest.raises(InputError, match="batch_size=0 is not usable"):
        throughput({"a": run}, inputs=1, batch_size=0)

"""Time, measured so that what the machine does meanwhile cancels.

Clock speed, heat and other programs drift over seconds. Two models timed one after the other differ by that
drift, too; two models timed in turn on the same input share it, and the ratio of each pair is free of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pocketlm.errors import InputError


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times.

    Args:
        median: Median of the ratios of the pairs.
        low: Lower end of the bootstrap 95 % interval of that median.
        high: Its upper end.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timings:
    """Times of several callables, round by round.

    Args:
        ms: Name to milliseconds of every round. The same position is the same round, thus the same input.
    """

    ms: Mapping[str, Sequence[float]]

    def p50(self, name: str) -> float:
        """Median milliseconds."""
        return float(np.median(self.ms[name]))

    def p95(self, name: str) -> float:
        """Milliseconds that 95 of 100 rounds stay below."""
        return float(np.quantile(self.ms[name], 0.95))

    def ratio(self, a: str, b: str) -> Ratio:
        """How many times longer `a` takes than `b`: with a teacher as `a`, how much faster `b` is.

        The median of the ratios within the rounds, and the bootstrap 95 % interval of that median
        (1,000 resamples of the rounds, percentile method).
        """
        ratios = np.array(self.ms[a]) / np.array(self.ms[b])  # [rounds]
        rows = np.random.default_rng(0).integers(0, len(ratios), (1000, len(ratios)))
        low, high = np.quantile(np.median(ratios[rows], axis=1), [0.025, 0.975])
        return Ratio(float(np.median(ratios)), float(low), float(high))


@dataclass(frozen=True)
class Throughput:
    """Speed in batches.

    Args:
        timings: Times of whole batches.
        texts: Number of texts timed for each name.
    """

    timings: Timings
    texts: int

    def texts_per_second(self, name: str) -> float:
        """All texts over all the time they took."""
        return 1000 * self.texts / sum(self.timings.ms[name])

    def ratio(self, a: str, b: str) -> Ratio:
        """How many times more texts per second `a` handles than `b`; see `Timings.ratio`."""
        return self.timings.ratio(b, a)


def interleave(
    runs: Mapping[str, Callable[[int], object]],
    inputs: int,
    rounds: int,
    warmup: int,
    pause_seconds: float = 0.0,
) -> Timings:
    """Time callables in turn: A B, B A, A B, … each pair on the same input.

    Each timed call follows one of the same callable on the input before, untimed: what is measured is a
    model in a stream of requests, not one that finds the other's weights in the caches.

    Args:
        runs: Name to a callable that takes the index of a real test input and runs it once.
        inputs: Number of inputs; round r uses input r modulo `inputs`.
        rounds: Timed rounds.
        warmup: Rounds before, not timed.
        pause_seconds: Rest before each pair of calls, not timed. Torch's threads wait for work in a spin
            for some milliseconds, and would take the cores from whoever comes next.

    Raises:
        InputError: there is nothing to time.
    """
    if not runs or inputs < 1 or rounds < 1:
        raise InputError(
            f"nothing to time: {len(runs)} callables, inputs={inputs}, rounds={rounds}; "
            "each must be 1 or more"
        )
    ms: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(-warmup, rounds):
        index = round_ % inputs
        # Whoever comes second finds other caches, so the order turns from input to input; and from pass to
        # pass, or with an even number of inputs each of them would always meet the same order.
        turn = 1 if (index + round_ // inputs) % 2 == 0 else -1
        for name in list(runs)[::turn]:
            if pause_seconds:
                time.sleep(pause_seconds)
            runs[name]((index - 1) % inputs)
            start = time.perf_counter_ns()
            runs[name](index)
            stop = time.perf_counter_ns()
            if round_ >= 0:
                ms[name].append((stop - start) / 1e6)
    return Timings(ms)


def throughput(
    runs: Mapping[str, Callable[[Sequence[int]], object]],
    inputs: int,
    batch_size: int = 32,
    rounds: int = 20,
    warmup: int = 2,
) -> Throughput:
    """Time whole batches in turn, as `interleave` does.

    Args:
        runs: Name to a callable that takes the indices of real test inputs and runs them as one batch.
        inputs: Number of inputs. A last batch that is not full is left out, unless it is the only one.
        batch_size: Inputs in a batch.
        rounds: Timed batches.
        warmup: Batches before, not timed.

    Raises:
        InputError: there is nothing to time.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is not usable; give 1 or more")
    size = min(batch_size, inputs)
    count = inputs // size if size else 0
    batches = [range(start * size, (start + 1) * size) for start in range(count)]

    def of_batch(run: Callable[[Sequence[int]], object]) -> Callable[[int], object]:
        return lambda index: run(batches[index])

    timings = interleave({name: of_batch(run) for name, run in runs.items()}, count, rounds, warmup)
    return Throughput(timings, texts=size * rounds)

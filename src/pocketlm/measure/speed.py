"""Time and memory, measured so that what the machine does meanwhile cancels.

Clock speed, heat and other programs drift over seconds. Two models timed one after the other differ by that
drift, too; two models timed in turn on the same input share it, and the ratio of each pair is free of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketlm.errors import InputError
from pocketlm.runtime.pocket import Text, load

PROC_STATUS = Path("/proc/self/status")


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


def peak_ram_bytes(
    folder: Path, texts: Sequence[Text], threads: int | None = None, batch_size: int = 1
) -> int | None:
    """Memory that loading and running a pocket takes, on top of the bare runtime.

    A fresh process imports the runtime, reads its resident memory, loads the pocket and runs `texts`;
    the figure is its highest resident memory less that first reading.

    Args:
        folder: A pocket.
        texts: Real inputs to run.
        threads: CPU threads; None takes every physical core.
        batch_size: Examples in one run of the graph.

    Returns:
        Bytes, or None where the system does not tell (it needs Linux's /proc).

    Raises:
        PocketError: the pocket cannot be loaded.
    """
    load(folder, threads)  # a damaged pocket is told here, not as the end of a child process
    if not PROC_STATUS.exists():
        return None
    order = json.dumps([str(folder), list(texts), threads, batch_size])
    child = subprocess.run(
        [sys.executable, "-c", "from pocketlm.measure.speed import report_ram; report_ram()"],
        input=order,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"},
    )
    return int(child.stdout)


def report_ram() -> None:
    """The child process of `peak_ram_bytes`: an order on standard input, bytes on standard output."""
    folder, texts, threads, batch_size = json.load(sys.stdin)
    inputs = [text if isinstance(text, str) else tuple(text) for text in texts]
    before = _status_bytes("VmRSS")
    load(folder, threads, verify=False).logits(inputs, batch_size)
    print(max(0, _status_bytes("VmHWM") - before))


def _status_bytes(field: str) -> int:
    # Not getrusage: its ru_maxrss starts from the parent's memory, which holds the teacher.
    for line in PROC_STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{PROC_STATUS} has no {field}")

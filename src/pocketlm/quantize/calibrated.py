"""Static 8-bit products: the range of what they read is found once, on texts of train, not in every run.

Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), section 3. Ranges: Wu et al. 2020
(https://arxiv.org/abs/2004.09602), section 3.3: the largest values, a percentile of them, or the range whose
8-bit histogram has the least relative entropy (Migacz 2017, "8-bit Inference with TensorRT").

Deviations: a range need not be symmetric; one of least entropy is cut where its larger side is. Weights as in
`pocketlm.quantize.int8`. All between the products, and products of two activations, stays in float32. The
graph says it by the standard's QuantizeLinear and DequantizeLinear, which a runtime joins with the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pocketlm.artifact import Artifact
from pocketlm.data.sample import few
from pocketlm.errors import RecipeError
from pocketlm.export.graph import session_with, with_nodes
from pocketlm.quantize.control import Judge, check_tolerance, controlled, feeds_of, named
from pocketlm.quantize.stored import quantize_embeddings, quantize_rows, weights_of
from pocketlm.stage import Context

Calibration = Literal["minmax", "percentile", "entropy"]

BINS = 4096
"""Of a histogram from -largest to largest."""
LEVELS = 128
"""What is left of the bins of one side: 8 bits, one of them the sign."""
STEP = 16
"""Bins between two ranges that are tried for the least entropy."""
SEVEN_BITS = 64


@dataclass(frozen=True)
class Seen:
    """What a product read on all texts.

    Args:
        lowest: Value.
        highest: Value.
        counts: How many values fell into each of `BINS` bins from -largest to largest.
    """

    lowest: float
    highest: float
    counts: np.ndarray

    @property
    def largest(self) -> float:
        """Size of the largest value, above 0."""
        return max(abs(self.lowest), abs(self.highest), 1e-8)

    def within(self, low: float, high: float) -> tuple[float, float]:
        """A range without what was never seen, and with 0, which padding and ReLU need exactly."""
        return min(max(low, self.lowest), 0.0), max(min(high, self.highest), 0.0)


def minmax(seen: Seen) -> tuple[float, float]:
    """All that was seen."""
    return seen.within(seen.lowest, seen.highest)


def percentile(seen: Seen, percent: float) -> tuple[float, float]:
    """Where so many percent of the values are; of the others, half is cut at either end."""
    edges = np.linspace(-seen.largest, seen.largest, BINS + 1)
    below = np.cumsum(seen.counts) / seen.counts.sum()
    tail = (1 - percent / 100) / 2
    low = edges[np.searchsorted(below, tail, side="right")]
    high = edges[np.searchsorted(below, 1 - tail) + 1]
    return seen.within(float(low), float(high))


def entropy(seen: Seen) -> tuple[float, float]:
    """The range whose `LEVELS` steps tell least else than the bins do (Migacz 2017), by size."""
    half = BINS // 2
    sizes = (seen.counts[half:] + seen.counts[:half][::-1]).astype(np.float64)
    tried = range(LEVELS, half + 1, STEP)
    best = min(tried, key=lambda bins: _divergence(sizes, bins))
    end = seen.largest * best / half
    return seen.within(-end, end)


def _divergence(sizes: np.ndarray, bins: int) -> float:
    """Relative entropy of the first bins, all beyond added to their last, against them in `LEVELS` steps."""
    inside = sizes[:bins]
    wanted = inside.copy()
    wanted[-1] += sizes[bins:].sum()
    starts = np.linspace(0, bins, LEVELS, endpoint=False).astype(int)
    of_bin = np.repeat(np.arange(LEVELS), np.diff([*starts, bins]))
    filled = inside > 0
    share = np.add.reduceat(inside, starts) / np.maximum(np.add.reduceat(filled.astype(int), starts), 1)
    got = np.where(filled, share[of_bin], 0.0)
    some = wanted > 0
    wanted, got = wanted[some] / wanted.sum(), got[some] / max(got.sum(), 1.0)
    return float((wanted * np.log(wanted / np.maximum(got, 1e-12))).sum())


def observe(model: onnx.ModelProto, values: Sequence[str], feeds: Sequence[Mapping[str, Any]]) -> list[Seen]:
    """See what values between a graph's operators are on some inputs; the graph is changed to return them.

    Args:
        model: The graph.
        values: Names.
        feeds: Inputs, without padding.
    """
    run = session_with(model, values)
    inputs = [node.name for node in run.get_inputs()]
    given = [{name: feed[name] for name in inputs} for feed in feeds]
    ends, counts = np.zeros((len(values), 2)), np.zeros((len(values), BINS), dtype=np.int64)
    for feed in given:
        said = run.run(list(values), feed)
        ends[:, 0] = np.minimum(ends[:, 0], [array.min() for array in said])
        ends[:, 1] = np.maximum(ends[:, 1], [array.max() for array in said])
    largest = np.maximum(np.abs(ends).max(axis=1), 1e-8)
    for feed in given:  # once more, now that the bins are known: nothing of a run is kept
        for place, array in enumerate(run.run(list(values), feed)):
            end = largest[place]
            counts[place] += np.histogram(array, BINS, (-end, end))[0]
    return [Seen(float(low), float(high), own) for (low, high), own in zip(ends, counts, strict=True)]


def quantize_static(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], floats: Sequence[str] = ()
) -> int:
    """Let products read and hold 8 bits, in place; returns how many.

    Args:
        model: A graph in float32.
        ranges: Least and largest value of what each of them reads, by the value's name.
        floats: Nodes that stay as they are, by name.
    """
    graph, weights = model.graph, weights_of(model.graph, floats)
    nodes, constants, done = list[onnx.NodeProto](), dict[str, np.ndarray](), 0
    for node in graph.node:
        own = node.op_type == "MatMul" and node.name not in floats
        if not own or node.input[1] not in weights or node.input[0] not in ranges:
            nodes.append(node)
            continue
        source, weight = node.input
        if f"{source}_scale" not in constants:
            low, high = ranges[source]
            scale = np.float32((high - low) / 255 or 1.0)
            zero = np.uint8(round(-low / float(scale)))
            constants |= {f"{source}_scale": np.array(scale), f"{source}_zero": np.array(zero)}
            about = [f"{source}_scale", f"{source}_zero"]
            nodes.append(helper.make_node("QuantizeLinear", [source, *about], [f"{source}_codes"]))
            nodes.append(
                helper.make_node("DequantizeLinear", [f"{source}_codes", *about], [f"{source}_near"])
            )
        if f"{weight}_scale" not in constants:
            codes, scales = quantize_rows(weights[weight].T, SEVEN_BITS)
            constants |= {f"{weight}_codes": np.ascontiguousarray(codes.T), f"{weight}_scale": scales[:, 0]}
            about = [f"{weight}_codes", f"{weight}_scale"]
            nodes.append(helper.make_node("DequantizeLinear", about, [f"{weight}_near"], axis=1))
        node.input[0], node.input[1] = f"{source}_near", f"{weight}_near"
        nodes.append(node)
        done += 1
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    with_nodes(graph, nodes)
    return done


@dataclass(frozen=True)
class StaticInt8:
    """Quantize the exported graph with ranges that are known before, in the place of `int8`.

    Args:
        calibration: How a range is found: all values (`minmax`), `percentile` of them, or least `entropy`.
        percent: Of the values that a percentile's range holds.
        texts: Of train that are looked at.
        embeddings: Store embedding tables in 8 bits, too; they compute in float32 after the look-up.
        tolerance: What may be lost of the metric on valid; see `pocketlm.quantize.int8.QuantizeInt8`.
        keep: Products that stay in float32 in any case, as `pocketlm doctor` names them.
    """

    calibration: Calibration = "percentile"
    percent: float = 99.99
    texts: int = 256
    embeddings: bool = True
    tolerance: float | None = 0.005
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance)
        if not 50 < self.percent <= 100:
            raise RecipeError(f"percent={self.percent} is out of range; allowed: above 50, at most 100")
        if self.texts < 1:
            raise RecipeError(f"texts={self.texts} is out of range; allowed: 1 or more")

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `onnx`; adds the figure `quantization`, see `QuantizeInt8`.

        Raises:
            RecipeError: `keep` names a part that the graph does not have.
        """
        path = context.folder / "model.onnx"
        source, parts = named(artifact, context.folder, self.keep, tables=self.embeddings)
        model = onnx.load(source)
        values = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.name in parts))
        train = Judge.of(artifact, "train")
        seen = observe(model, values, feeds_of(train.opened(source), few(train.inputs, self.texts)))
        rule: dict[Calibration, Callable[[Seen], tuple[float, float]]] = {
            "minmax": minmax,
            "percentile": lambda one: percentile(one, self.percent),
            "entropy": entropy,
        }
        ranges = dict(zip(values, map(rule[self.calibration], seen), strict=True))

        def make(path: Path, floats: Sequence[str]) -> None:
            graph = onnx.load(source)
            if self.embeddings:
                quantize_embeddings(graph, [*self.keep, *floats])
            quantize_static(graph, ranges, [*self.keep, *floats])
            onnx.save(graph, path)

        found = controlled(source, path, make, parts, artifact, self.tolerance)
        source.unlink()
        return artifact.with_part("onnx", path).with_figures(
            quantization={"bits": 8, "compute": "int8", "calibration": self.calibration, **found}
        )

"""Where does a pocket's graph leave the model that it was made of?

Both graphs come from the same exporter, so the values between their operators have the same names, and what
quantization or damage does to each of them can be measured: Wu et al. 2020, "Integer Quantization for Deep
Learning Inference" (https://arxiv.org/abs/2004.09602), section 6.1 (sensitivity), value by value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pocketlm.diagnose.finding import Finding
from pocketlm.export.graph import named_after, session_with

BROKEN = 0.5
"""Relative error of a value beyond which its graph is damaged: 8 bits cost some hundredths."""
WRONG_WEIGHTS = 0.05
"""Relative error of a map's weights that no rounding explains, beyond which they are not the model's."""
SATURATED = 0.02
"""Share of codes at the end of their range, above which the range was too small."""
OUTLIER = 30.0
"""Largest activation, in standard deviations, above which one scale a tensor leaves the others few steps."""
QUANTIZED, STORED, HALF = "_quantized", "_codes", "_half"
"""What the codes of a weight are called, by ONNX Runtime's quantizer and by ours, and its float16."""
FLOATS = (
    "Add",
    "Attention",
    "Gather",
    "Gelu",
    "LayerNormalization",
    "MatMul",
    "Mul",
    "Softmax",
    "Tanh",
)
"""Operators whose values are compared; the others make masks, shapes and positions."""

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Value:
    """What one operator makes, in both graphs.

    Args:
        name: Of the value.
        operator: Of the float graph, such as `MatMul`.
        of: What it is of, after the weights that the operator takes, such as `encoder.layer.0.output.dense`.
        error: Root mean squared difference, relative to the float value's.
        own: What this operator adds: `error` without that of its inputs.
        outlier: Largest size of its first input, in standard deviations of it.
    """

    name: str
    operator: str
    of: str
    error: float
    own: float
    outlier: float


@dataclass(frozen=True)
class Map:
    """The weights of one product, in both graphs.

    Args:
        of: What they are of, as `int8.keep` takes it.
        error: Root mean squared difference, relative.
        unexplained: The same without what rounding explains, half a step of each weight.
        saturated: Share of codes at the end of their range; 0 where the weights are floats.
    """

    of: str
    error: float
    unexplained: float
    saturated: float


def values(float_graph: Path, pocket_graph: Path, feeds: Feeds) -> list[Value]:
    """Compare what the operators of two graphs make, in the order of the float graph.

    Args:
        float_graph: In float32, as exported.
        pocket_graph: The pocket's.
        feeds: Inputs, one text each, so that there is no padding.
    """
    ours, theirs = onnx.load(pocket_graph), onnx.load(float_graph)
    made = {output for node in ours.graph.node for output in node.output}
    owners = named_after(theirs)
    nodes = [node for node in theirs.graph.node if node.output[0] in made and node.op_type in FLOATS]
    wanted = [node.output[0] for node in nodes]
    squares = {name: np.zeros(2) for name in wanted}  # of the difference and of the value
    outliers = dict.fromkeys(wanted, 0.0)
    runs = [session_with(model, wanted) for model in (theirs, ours)]
    for feed in feeds:
        floats, said = (_run(run, wanted, feed) for run in runs)
        for node in nodes:
            name = node.output[0]
            squares[name] += [np.square(said[name] - floats[name]).sum(), np.square(floats[name]).sum()]
            source = floats.get(node.input[0])
            if source is not None and source.std() > 0:
                outliers[name] = max(outliers[name], float(np.abs(source).max() / source.std()))
    errors = {name: _root(wrong, whole) for name, (wrong, whole) in squares.items()}
    found: list[Value] = []
    for name, node in zip(wanted, nodes, strict=True):
        before = max((errors.get(one, 0.0) for one in node.input), default=0.0)
        own = max(0.0, errors[name] ** 2 - before**2) ** 0.5
        found.append(Value(name, node.op_type, owners.get(name, name), errors[name], own, outliers[name]))
    return found


def maps(float_graph: Path, pocket_graph: Path) -> list[Map]:
    """Compare the weights of the products of two graphs; those of the float graph have names."""
    ours, theirs = onnx.load(pocket_graph), onnx.load(float_graph)
    constants = {tensor.name: tensor for tensor in ours.graph.initializer}
    floats = {tensor.name: tensor for tensor in theirs.graph.initializer}
    found: list[Map] = []
    for node in theirs.graph.node:
        weight = floats.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None:
            continue
        wanted = numpy_helper.to_array(weight)
        stored = _weights(constants, node.input[1])
        if stored is None:
            continue
        got, step, saturated = stored
        error = unexplained = 1.0
        if got.shape == wanted.shape:
            away, whole = np.abs(got - wanted), np.square(wanted).sum()
            error = _root(np.square(away).sum(), whole)
            unexplained = _root(np.square(np.maximum(away - step / 2, 0)).sum(), whole)
        found.append(Map(node.name, error, unexplained, saturated))
    return found


def of_graphs(compared: Iterable[Value], weights: Iterable[Map]) -> list[Finding]:
    """What is wrong with a graph, and what costs most of it."""
    found: list[Finding] = []
    for one in weights:
        if one.unexplained > WRONG_WEIGHTS and one.saturated > SATURATED:
            text = (
                f"{one.of} is saturated: {one.saturated:.0%} of its codes are at the end of their range, and "
                f"its weights are off by {one.error:.0%}; quantize it anew, or keep it in float32"
            )
            found.append(Finding("saturation", True, text, {"int8": {"keep": [one.of]}}))
        elif one.unexplained > WRONG_WEIGHTS:
            text = (
                f"the weights of {one.of} are not those of model.safetensors: they are off by {one.error:.0%}"
            )
            found.append(Finding("graph", True, f"{text}; make the pocket anew"))
    found += [
        Finding(
            "graph",
            True,
            f"{one.of} is off by {one.error:.0%} from what model.safetensors gives: the graph looks up other "
            "rows, or its table is another; make the pocket anew",
        )
        for one in compared
        if one.own > BROKEN and one.operator == "Gather"
    ]
    return found


def of_outliers(compared: Iterable[Value]) -> list[Finding]:
    """Products whose input has outliers: one scale a tensor leaves few steps for all else."""
    found = [one for one in compared if one.operator == "MatMul" and one.outlier > OUTLIER]
    worst = sorted(found, key=lambda one: -one.outlier)
    return [
        Finding(
            "outliers",
            False,
            f"an input of {one.of} reaches {one.outlier:.0f} standard deviations, and 8 bits have 256 steps "
            "for all of it",
        )
        for one in worst[:1]
    ]


def _weights(
    constants: Mapping[str, onnx.TensorProto], name: str
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Weights that a pocket computes with, their steps, and the share of codes at the end of their range."""
    for floats in (name, name + HALF):
        if floats in constants:
            return numpy_helper.to_array(constants[floats]).astype(np.float32), np.zeros(1), 0.0
    suffix = next((each for each in (QUANTIZED, STORED) if name + each in constants), None)
    if suffix is None:
        return None
    codes = numpy_helper.to_array(constants[name + suffix]).astype(np.float32)
    scale = np.atleast_2d(numpy_helper.to_array(constants[f"{name}_scale"]))
    scale = np.repeat(scale, len(codes) // len(scale), axis=0)  # of all inputs, or of a group of them
    if f"{name}_zero_point" in constants:
        codes = codes - numpy_helper.to_array(constants[f"{name}_zero_point"]).astype(np.float32)
    # A column of a scale has one code at the end of its range by construction.
    groups = len(np.unique(scale, axis=0))
    ends = max(0.0, float((np.abs(codes) == np.abs(codes).max()).mean()) - groups / codes.shape[0])
    return codes * scale, scale, ends


def _root(wrong: float, whole: float) -> float:
    """Root of a ratio of two sums of squares."""
    return float((wrong / max(whole, 1e-12)) ** 0.5)


def _run(session: Any, wanted: Sequence[str], feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    taken = {node.name: feed[node.name] for node in session.get_inputs()}
    return dict(zip(wanted, session.run(list(wanted), taken), strict=True))

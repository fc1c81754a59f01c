"""What zeros are worth: bytes where they are stored sparsely, and a stopwatch for the rest.

A graph with zeros in its matrices has the size and the speed of one without, unless something leaves them
out. So three things are told apart: the graph as it ships; its matrices as a bit a weight and the weights
that are not zero, plain and entropy-coded; and the time against the same graph with no zero in it, in turn.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pocketlm.timing import interleave

ROUNDS, WARMUP = 100, 10


def worth_of_zeros(
    path: Path, folder: Path, answer: Callable[[Path], Callable[[int], object]], inputs: int
) -> dict[str, Any]:
    """Weigh and time a graph with zeros.

    Args:
        path: The graph, in float32 or with weights of eight bits.
        folder: Takes the same graph without zeros.
        answer: Makes of a graph what answers one of the inputs by its index.
        inputs: How many there are.

    Returns:
        `sparsity` of the matrices, `graph_bytes`, `sparse_bytes`, `coded_bytes` (both with all that is no
        matrix as it is in the graph), `faster_x` and its interval, over the graph without zeros.
    """
    model = onnx.load(path)
    matrices = matrices_of(model)
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in matrices.items()}
    zeros = sum(int((array == 0).sum()) for array in arrays.values())
    rest = path.stat().st_size - sum(array.nbytes for array in arrays.values())
    stored = [stored_sparsely(array) for array in arrays.values()]
    chance = np.random.default_rng(0)
    for name, tensor in matrices.items():
        tensor.CopyFrom(numpy_helper.from_array(without_zeros(arrays[name], chance), name))
    folder.mkdir(parents=True, exist_ok=True)
    dense = folder / "without-zeros.onnx"
    onnx.save(model, dense)
    timed = interleave({"dense": answer(dense), "sparse": answer(path)}, inputs, ROUNDS, WARMUP)
    dense.unlink()
    return {
        "sparsity": zeros / max(1, sum(array.size for array in arrays.values())),
        "graph_bytes": path.stat().st_size,
        "sparse_bytes": rest + sum(map(len, stored)),
        "coded_bytes": rest + sum(len(lzma.compress(part)) for part in stored),
        "faster_x": asdict(timed.ratio("dense", "sparse")),
    }


def matrices_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The constant matrices of a graph that are not tables looked up by rows."""
    tables = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8)
    found = [tensor for tensor in model.graph.initializer if tensor.data_type in kinds]
    return {
        tensor.name: tensor
        for tensor in found
        if len(tensor.dims) == 2 and min(tensor.dims) > 1 and tensor.name not in tables
    }


def stored_sparsely(array: np.ndarray) -> bytes:
    """A bit a weight, and behind them the weights that are not zero."""
    return np.packbits(array != 0).tobytes() + array[array != 0].tobytes()


def without_zeros(array: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """The same array with its zeros replaced by some of its other values."""
    filled, others = array.copy(), array[array != 0]
    filled[filled == 0] = chance.choice(others, int((array == 0).sum())) if len(others) else 1
    return filled


def told(zeros: Mapping[str, Any], ram_bytes: float | None) -> str:
    """What a report says of it in one sentence; the memory is that of the pocket as it runs."""
    ratio = zeros["faster_x"]
    graph, sparse, coded = (zeros[f"{name}_bytes"] / 1e6 for name in ("graph", "sparse", "coded"))
    speed = (
        f"{ratio['median']:.2f}x faster here than the same graph without zeros"
        if ratio["low"] > 1
        else f"not faster here ({ratio['median']:.2f}x, {ratio['low']:.2f} to {ratio['high']:.2f})"
    )
    ram = "RAM not measured" if ram_bytes is None else f"{ram_bytes / 1e6:.1f} MB of RAM, zeros and all"
    return (
        f"{zeros['sparsity']:.0%} of the weights in matrices are zero: {sparse:.2f} MB stored sparsely and "
        f"{coded:.2f} MB entropy-coded instead of {graph:.2f} MB; {ram}; {speed}."
    )

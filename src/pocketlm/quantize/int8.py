"""Eight-bit weights: dynamic quantization of matrix products, row-wise quantization of embeddings.

Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), section 2.1: w ≈ scale · (q - zero_point).

Deviations: weights are symmetric (zero_point 0), one scale an output channel, and use 7 of the 8
bits: on a CPU with AVX2 and no VNNI, the product of an unsigned 8-bit activation and a signed 8-bit
weight is summed in 16 bits, which 2 · 255 · 127 overflows and 2 · 255 · 64 does not. Activations are
quantized as they come (one scale a tensor), so no calibration is needed. Embedding rows have a scale
each and are multiplied out after the look-up.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    QuantType,
    quantize_dynamic,  # pyright: ignore[reportUnknownVariableType]
)

from pocketlm.artifact import Artifact
from pocketlm.errors import RecipeError
from pocketlm.quantize.control import Judge, Make, backed_off, products_of
from pocketlm.stage import Context

SMALLEST_TABLE = 1024


@dataclass(frozen=True)
class QuantizeInt8:
    """Quantize the exported graph.

    Args:
        matmuls: Quantize the weights of matrix products; they compute in integers.
        embeddings: Quantize embedding tables; they compute in float32 after the look-up.
        tolerance: What may be lost of the metric on valid, such as 0.005; the products that 8 bits hurt most
            stay in float32 until no more is lost. None does not look.
        keep: Products that stay in float32 in any case, as `pocketlm doctor` names them.
    """

    matmuls: bool = True
    embeddings: bool = True
    tolerance: float | None = 0.005
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tolerance is not None and self.tolerance < 0:
            raise RecipeError(f"tolerance={self.tolerance} is out of range; allowed: 0 or more, or null")

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `onnx`; adds the figure `quantization`.

        With a tolerance, it has the scores on valid and the products that were kept in float32.
        """
        path, source = context.folder / "model.onnx", context.folder / "named.onnx"
        model = onnx.load(artifact.parts["onnx"])
        products = products_of(model)
        unknown = sorted({*self.keep} - {*products})
        if unknown:
            raise RecipeError(f"keep names no products {unknown}; the graph has {products}")
        onnx.save(model, source)
        found: dict[str, Any] = {}
        if self.matmuls and self.tolerance is not None:
            others = [product for product in products if product not in self.keep]
            judge = Judge.of(artifact)
            found = asdict(backed_off(source, path, self._make(source), others, judge, self.tolerance))
        else:
            self._make(source)(path, ())
        source.unlink()
        tables = sum(tensor.name.endswith("_codes") for tensor in onnx.load(path).graph.initializer)
        return artifact.with_part("onnx", path).with_figures(
            quantization={"bits": 8, "matmuls": self.matmuls, "embedding_tables": tables, **found}
        )

    def _make(self, source: Path) -> Make:
        def make(path: Path, floats: Sequence[str]) -> None:
            quantize(source, path, self.matmuls, self.embeddings, [*self.keep, *floats])

        return make


def quantize(
    source: Path, target: Path, matmuls: bool = True, embeddings: bool = True, floats: Sequence[str] = ()
) -> None:
    """Write a graph with weights of eight bits.

    Args:
        source: The graph in float32.
        target: Where the other goes, in a folder that can be written.
        matmuls: See `QuantizeInt8`, as the next.
        embeddings: See there.
        floats: Nodes that stay in float32, by name.
    """
    model = onnx.load(source)
    if embeddings:
        quantize_embeddings(model)
    if matmuls:
        staged = target.parent / "embeddings.onnx"
        onnx.save(model, staged)
        quantize_matmuls(staged, target, floats)
        staged.unlink()
    else:
        onnx.save(model, target)


def quantize_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 8-bit rows: table ≈ scale · q.

    Args:
        table: Float [rows, width].

    Returns:
        q, int8 [rows, width]; scale, float32 [rows, 1]. The error is at most scale / 2.
    """
    scale: np.ndarray = np.abs(table).max(axis=1, keepdims=True).astype(np.float32) / 127
    scale[scale == 0] = 1.0
    return np.round(table / scale).astype(np.int8), scale


def quantize_embeddings(model: onnx.ModelProto) -> int:
    """Store every embedding table of a graph in 8 bits, in place; returns how many there were."""
    graph = model.graph
    tables = _tables(graph)
    nodes: list[onnx.NodeProto] = []
    done: dict[str, bool] = {}
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None:
            nodes.append(node)
            continue
        name, ids, output = node.input[0], node.input[1], node.output[0]
        if name not in done:
            codes, scale = quantize_rows(numpy_helper.to_array(table))
            graph.initializer.append(numpy_helper.from_array(codes, f"{name}_codes"))
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
            done[name] = True
        nodes += [
            helper.make_node("Gather", [f"{name}_codes", ids], [f"{output}_codes"], axis=0),
            helper.make_node("Gather", [f"{name}_scale", ids], [f"{output}_scale"], axis=0),
            helper.make_node("Cast", [f"{output}_codes"], [f"{output}_float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{output}_float", f"{output}_scale"], [output]),
        ]
    kept = [tensor for tensor in graph.initializer if tensor.name not in done]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return len(done)


def _tables(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Large float matrices that are looked up by rows and used in no other way, as tied weights are."""
    found = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) == 2
        and np.prod(tensor.dims) >= SMALLEST_TABLE
    }
    for node in graph.node:
        by_rows = node.op_type == "Gather" and not any(a.name == "axis" and a.i for a in node.attribute)
        for name in node.input[1:] if by_rows else node.input:
            found.pop(name, None)
    return found


def quantize_matmuls(source: Path, target: Path, floats: Sequence[str] = ()) -> None:
    """Dynamic 8-bit matrix products, one scale an output channel, 7 bits used (see the module).

    Args:
        source: The graph in float32.
        target: Where the other goes.
        floats: Nodes that stay as they are, by name.
    """
    # On the way onnx writes the graph once more, without looking whether the disk takes all of it.
    if shutil.disk_usage(target.parent).free < 2 * source.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a step that our graphs do not need
    try:
        quantize_dynamic(
            cast(Any, source),
            cast(Any, target),
            op_types_to_quantize=["MatMul", "Gemm"],
            # A Gemm becomes a MatMul of this name before.
            nodes_to_exclude=[*floats, *(f"{name}_MatMul" for name in floats)],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    finally:
        logging.disable(level)

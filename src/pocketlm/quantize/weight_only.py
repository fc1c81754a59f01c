"""Weights of 4 or 3 bits in memory, too: groups of them share a scale, and activations stay floats.

The rounding is that of Dettmers and Zettlemoyer 2023, "The case for 4-bit precision"
(https://arxiv.org/abs/2212.09720), section 2: blocks of weights with a scale each.

Deviations: symmetric, -7 … 7 or -3 … 3; a row that is on such a grid already (`qat`, `gptq`) keeps its
scale, and is not rounded twice. Products say it by the standard's DequantizeLinear with blocks, which ONNX
Runtime makes one MatMulNBits of; tables by its GatherBlockQuantized, as the standard has no look-up in 4
bits. Neither knows 3: they take the room of 4 in memory, and no more than their own in `model.pocket`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pocketlm.artifact import Artifact
from pocketlm.errors import RecipeError
from pocketlm.export.graph import with_nodes
from pocketlm.quantize.aware import highest
from pocketlm.quantize.control import check_tolerance, controlled, named
from pocketlm.quantize.stored import quantize_embeddings, tables_of, weights_of
from pocketlm.stage import Context

STORED = 4
"""Bits that a weight takes in the graph."""
ZERO = 8
"""Code of 0 in a table, whose codes have no sign."""
ON_GRID = 1e-3
"""Part of a step by which a weight may miss a point of its grid."""
GROUPS = (16, 32, 64, 128, 256)
CONTRIBUTED = "com.microsoft"


def quantize_groups(rows: np.ndarray, group: int, bits: int = STORED) -> tuple[np.ndarray, np.ndarray]:
    """Round rows of weights, a scale for each group of columns: w ≈ scale · q.

    A row that is on a grid of these bits already, as `qat` and `gptq` leave it, keeps that grid's scale.

    Args:
        rows: Float [rows, width].
        group: Columns that share a scale.
        bits: 3 or 4.

    Returns:
        q, int8 [rows, groups · group], from -3 to 3 or -7 to 7 and 0 beyond the width; scale, float32 [rows,
        groups].
    """
    groups = -(-rows.shape[1] // group)
    padded = np.pad(rows, ((0, 0), (0, groups * group - rows.shape[1])))
    blocks = padded.reshape(len(rows), groups, group)
    grids, most = grids_of(rows, bits)[:, None], highest(bits)
    scale = np.where(grids > 0, grids, np.abs(blocks).max(axis=2) / most)
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    codes = np.clip(np.round(blocks / scale[..., None]), -most, most).astype(np.int8)
    return codes.reshape(len(rows), -1), scale


def grids_of(rows: np.ndarray, bits: int = STORED) -> np.ndarray:
    """The distance of two points of the grid that each row is on, [rows]; 0 where it is on none."""
    largest: np.ndarray = np.abs(rows).max(axis=1)
    found = np.zeros(len(rows), dtype=np.float32)
    for steps in range(1, highest(bits) + 1):
        scale = np.maximum(largest, 1e-12) / steps
        codes = rows / scale[:, None]
        exact = np.abs(codes - np.round(codes)).max(axis=1) < ON_GRID
        found = np.where((found == 0) & exact, scale, found)
    return found


def packed(codes: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, uint8 [rows, width], two in a byte, the first one low: [rows, width / 2]."""
    pairs = codes.reshape(len(codes), -1, 2)
    return pairs[..., 0] | pairs[..., 1] << STORED


def quantize_products(
    model: onnx.ModelProto, group: int, bits: int = STORED, floats: Sequence[str] = ()
) -> int:
    """Store the weights of products in few bits, in place; returns how many.

    Args:
        model: A graph in float32.
        group: Inputs of a product that share a scale. A product whose inputs are no multiple of it is left.
        bits: 3 or 4.
        floats: Nodes that stay as they are, by name.
    """
    graph, nodes = model.graph, list[onnx.NodeProto]()
    weights = {name: weight for name, weight in weights_of(graph, floats).items() if len(weight) % group == 0}
    for name, weight in weights.items():
        codes, scale = quantize_groups(weight.T, group, bits)
        # The standard's INT4: two's complement, two of them a byte.
        stored = onnx.TensorProto(name=f"{name}_codes", data_type=onnx.TensorProto.INT4, dims=codes.T.shape)
        stored.raw_data = packed(codes.T.astype(np.uint8) & 15).tobytes()
        graph.initializer.append(stored)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(scale.T), f"{name}_scale"))
        about = [f"{name}_codes", f"{name}_scale"]
        nodes.append(helper.make_node("DequantizeLinear", about, [name], axis=0, block_size=group))
    with_nodes(graph, [*nodes, *graph.node])
    return len(weights)


def quantize_tables(
    model: onnx.ModelProto, group: int, bits: int = STORED, floats: Sequence[str] = ()
) -> int:
    """Store embedding tables in few bits, in place; returns how many.

    Args:
        model: A graph in float32.
        group: Columns that share a scale. A table whose width is no multiple of it is left.
        bits: 3 or 4.
        floats: Tables that stay as they are, by name.
    """
    graph, done = model.graph, dict[str, bool]()
    tables = tables_of(graph, floats)
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.dims[1] % group:
            continue
        name, ids = node.input[0], node.input[1]
        if name not in done:
            codes, scale = quantize_groups(numpy_helper.to_array(table), group, bits)
            stored = packed((codes + ZERO).astype(np.uint8))
            graph.initializer.append(numpy_helper.from_array(stored, f"{name}_codes"))
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
            done[name] = True
        node.CopyFrom(
            helper.make_node(
                "GatherBlockQuantized", [f"{name}_codes", ids, f"{name}_scale"], node.output, node.name,
                domain=CONTRIBUTED, bits=STORED, block_size=group, gather_axis=0, quantize_axis=1,
            )
        )  # fmt: skip
    if done:
        model.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))
    with_nodes(graph, list(graph.node))
    return len(done)


@dataclass(frozen=True)
class WeightOnly:
    """Store the exported graph's weights in few bits, in the place of `int8`: small in memory, too.

    Args:
        bits: Of products' weights: 4, or 3, which `model.pocket` gains by.
        group: Weights that share a scale: 16, 32, 64, 128 or 256.
        embedding_bits: Of embedding tables: 3, 4, or 8 with a scale a row; None leaves them in float32.
        tolerance: What may be lost of the metric on valid, as of `pocketlm.quantize.int8.QuantizeInt8`.
        keep: Products that stay in float32 in any case, and tables that get 8 bits, as `pocketlm doctor`
            names them.
    """

    bits: Literal[3, 4] = 4
    group: int = 32
    embedding_bits: Literal[3, 4, 8] | None = 4
    tolerance: float | None = 0.005
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance)
        if self.group not in GROUPS:
            raise RecipeError(f"group={self.group} is not one of {', '.join(map(str, GROUPS))}")

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `onnx`; adds the figure `quantization`, see `QuantizeInt8`.

        Products whose inputs are no multiple of the group stay in float32: the figure counts those that fit.

        Raises:
            RecipeError: `keep` names a part that the graph does not have, or the group fits no product.
        """
        path = context.folder / "model.onnx"
        source, parts = named(artifact, context.folder, self.keep, tables=self.embedding_bits is not None)
        inputs = [len(weight) for weight in weights_of(onnx.load(source).graph, self.keep).values()]
        fitting = sum(size % self.group == 0 for size in inputs)
        if inputs and not fitting:
            fit = [group for group in GROUPS if any(size % group == 0 for size in inputs)]
            raise RecipeError(
                f"group={self.group} does not divide the inputs of any product "
                f"({', '.join(map(str, sorted({*inputs})))}); "
                + (f"try {' or '.join(map(str, fit))}" if fit else "no group does: leave weight_only out")
            )

        def make(path: Path, floats: Sequence[str]) -> None:
            model, kept = onnx.load(source), [*self.keep, *floats]
            quantize_products(model, self.group, self.bits, kept)
            if self.embedding_bits is not None and self.embedding_bits <= STORED:
                quantize_tables(model, self.group, self.embedding_bits, kept)
            if self.embedding_bits is not None:  # those that are kept or that no group fits
                quantize_embeddings(model)
            onnx.save(model, path)

        found = controlled(source, path, make, parts, artifact, self.tolerance)
        source.unlink()
        return artifact.with_part("onnx", path).with_figures(
            quantization={
                **{"bits": self.bits, "compute": "weights only", "group": self.group},
                **{"products": len(inputs), "products_in_groups": fitting, **found},
            }
        )

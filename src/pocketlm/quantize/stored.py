"""Weights that are only stored in 8 bits: tables are multiplied out after the look-up, maps once at opening.

Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), section 2.1, with a scale a row and zero_point 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pocketlm.export.graph import with_nodes

SMALLEST_TABLE = 1024


def quantize_rows(table: np.ndarray, highest: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 8-bit rows: table ≈ scale · q.

    Args:
        table: Float [rows, width].
        highest: Largest code; 64 uses 7 bits.

    Returns:
        q, int8 [rows, width]; scale, float32 [rows, 1]. The error is at most scale / 2.
    """
    scale: np.ndarray = np.abs(table).max(axis=1, keepdims=True).astype(np.float32) / highest
    scale[scale == 0] = 1.0
    return np.round(table / scale).astype(np.int8), scale


def quantize_embeddings(model: onnx.ModelProto, floats: Sequence[str] = ()) -> int:
    """Store embedding tables of a graph in 8 bits, in place, but those named; returns how many there were."""
    graph = model.graph
    tables = tables_of(graph, floats)
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
    with_nodes(graph, nodes)
    return len(done)


def tables_of(graph: onnx.GraphProto, floats: Sequence[str] = ()) -> dict[str, onnx.TensorProto]:
    """Large float matrices that are looked up by rows and used in no other way, as tied weights are.

    Args:
        graph: Of a model.
        floats: Those that are left out, by name.
    """
    found = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) == 2
        and np.prod(tensor.dims) >= SMALLEST_TABLE
        and tensor.name not in floats
    }
    for node in graph.node:
        by_rows = node.op_type == "Gather" and not any(a.name == "axis" and a.i for a in node.attribute)
        for name in node.input[1:] if by_rows else node.input:
            found.pop(name, None)
    return found


def store_products(model: onnx.ModelProto, floats: Sequence[str] = ()) -> None:
    """Store the weights of products in 8 bits, one scale an output channel, in place.

    The graph multiplies them out. A runtime does that once, when it opens the graph, and computes in float32.

    Args:
        model: A graph in float32.
        floats: Nodes whose weights stay as they are, by name.
    """
    graph, nodes = model.graph, list[onnx.NodeProto]()
    for name, weight in weights_of(graph, floats).items():
        codes, scale = quantize_rows(weight.T)
        for suffix, part in (("codes", codes), ("scale", scale)):
            part = np.ascontiguousarray(part.T)
            graph.initializer.append(numpy_helper.from_array(part, f"{name}_{suffix}"))
        nodes += [
            helper.make_node("Cast", [f"{name}_codes"], [f"{name}_float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name]),
        ]
    with_nodes(graph, [*nodes, *graph.node])


def store_halves(model: onnx.ModelProto, parts: Sequence[str]) -> None:
    """Store float32 weights in float16, in place; a runtime makes them float32 once, when it opens the graph.

    Args:
        model: Any graph.
        parts: Products and tables that have such weights, by name; those of others stay as they are.
    """
    graph, nodes = model.graph, list[onnx.NodeProto]()
    of_products = (node.input[1] for node in graph.node if node.op_type == "MatMul" and node.name in parts)
    weights = {*of_products, *parts}
    for tensor in [*graph.initializer]:
        if tensor.name in weights and tensor.data_type == onnx.TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(half, f"{tensor.name}_half"))
            nodes.append(
                helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=onnx.TensorProto.FLOAT)
            )
    with_nodes(graph, [*nodes, *graph.node])


def weights_of(graph: onnx.GraphProto, floats: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Weights of products by name, [inputs, outputs], but small ones and those of some nodes."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    names = dict.fromkeys(
        node.input[1] for node in graph.node if node.op_type == "MatMul" and node.name not in floats
    )
    return {
        name: numpy_helper.to_array(constants[name])
        for name in names
        if name in constants and np.prod(constants[name].dims) >= SMALLEST_TABLE
    }

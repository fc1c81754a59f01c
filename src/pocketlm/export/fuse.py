"""Say the same with fewer operators: what the exporter writes step by step, the standard has in one.

The exporter cuts queries, keys and values into heads by hand, multiplies the same states three times and
builds the mask by indexing. In a small model at batch 1 each of these operators costs as much as the
arithmetic. ONNX's Attention (opset 23) takes whole states and the number of heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from pocketlm.export.graph import Graph, drop_unused

MASK = "attention_mask"
# The mask over keys, [batch, 1, 1, length], and the same for every query, [batch, 1, length, length].
COLUMNS, EVERY_QUERY = "mask.columns", "mask.spread"
QKV = 3


def fuse_attention(model: onnx.ModelProto) -> int:
    """Simplify every Attention operator of a graph, in place.

    An operator that is not fed as expected (a bias on the scores, queries from other states than keys)
    keeps the parts that differ.

    Returns:
        How many were simplified.
    """
    graph = model.graph
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    done = sum(_whole_states(Graph.of(graph), node) for node in attentions)
    if done:
        _spread_mask(Graph.of(graph), attentions)
    drop_unused(graph)
    return done


@dataclass(frozen=True)
class _Map:
    """States that a linear map gives and that are then cut into heads."""

    states: str
    weight: np.ndarray
    bias: np.ndarray


def _whole_states(found: Graph, node: NodeProto) -> bool:
    """Feed an Attention with whole states, from one matrix product, and take whole states from it."""
    maps = [_map_of(found, value) for value in node.input[:QKV]]
    ending = _joined(found, node.output[0])
    size = _head_size(found, node.input[0])
    if ending is None or size is None or any(each is None for each in maps):
        return False
    queries, keys, values = cast(list[_Map], maps)
    if not queries.states == keys.states == values.states:
        return False
    name, graph = node.output[0], found.graph
    weight = np.concatenate([each.weight for each in (queries, keys, values)], axis=1)
    bias = np.concatenate([each.bias for each in (queries, keys, values)])
    sizes = np.array([len(each.bias) for each in (queries, keys, values)], dtype=np.int64)
    graph.initializer.extend(
        numpy_helper.from_array(array, f"{name}.{part}")
        for part, array in (("weight", weight), ("bias", bias), ("sizes", sizes))
    )
    parts = [f"{name}.{part}" for part in ("queries", "keys", "values")]
    before = [
        helper.make_node("MatMul", [queries.states, f"{name}.weight"], [f"{name}.product"]),
        helper.make_node("Add", [f"{name}.product", f"{name}.bias"], [f"{name}.states"]),
        helper.make_node("Split", [f"{name}.states", f"{name}.sizes"], parts, axis=-1),
    ]
    place = next(place for place, other in enumerate(graph.node) if other is node)
    for offset, each in enumerate(before):
        graph.node.insert(place + offset, each)
    node.input[:QKV] = parts
    graph.node.remove(ending)
    node.output[0] = ending.output[0]
    for attribute in ("q_num_heads", "kv_num_heads"):
        node.attribute.append(helper.make_attribute(attribute, len(queries.bias) // size))
    return True


def _map_of(found: Graph, value: str) -> _Map | None:
    """The map behind `Transpose(Reshape(states · weight + bias))`."""
    cut = found.maker(value, "Transpose")
    shaped = None if cut is None else found.maker(cut.input[0], "Reshape")
    added = None if shaped is None else found.maker(shaped.input[0], "Add")
    if added is None:
        return None
    for product, bias in (added.input, list(added.input)[::-1]):
        multiplied, constant = found.maker(product, "MatMul"), found.array(bias)
        if multiplied is not None and constant is not None and constant.ndim == 1:
            weight = found.array(multiplied.input[1])
            return None if weight is None else _Map(multiplied.input[0], weight, constant)
    return None


def _head_size(found: Graph, value: str) -> int | None:
    """Features of a head: the last number of the shape [batch, length, heads, size] that cuts it."""
    cut = found.maker(value, "Transpose")
    shaped = None if cut is None else found.maker(cut.input[0], "Reshape")
    if shaped is None:
        return None
    joined = found.maker(shaped.input[1], "Concat")
    shape = found.array(shaped.input[1] if joined is None else joined.input[-1])
    return None if shape is None or shape[-1] < 1 else int(shape[-1])


def _joined(found: Graph, value: str) -> NodeProto | None:
    """The Reshape of `Reshape(Transpose(value))`, which puts the heads' outputs side by side."""
    turned = found.users(value)
    shaped = found.users(turned[0].output[0]) if len(turned) == 1 else []
    fits = [node.op_type for node in (*turned, *shaped)] == ["Transpose", "Reshape"]
    return shaped[0] if fits else None


def _spread_mask(found: Graph, attentions: list[NodeProto]) -> None:
    """Give Attention the input mask as [batch, 1, length, length]; one that adds to the scores stays."""
    graph = found.graph
    if MASK not in {value.name for value in graph.input}:
        return
    constants = {"mask.to_columns": [1, 2], "mask.to_rows": [1, 3], "mask.zero": 0}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in constants.items()
    )
    # The standard lets a mask of one row spread over all queries; ONNX Runtime does not.
    made = [
        helper.make_node("Cast", [MASK], ["mask.kept"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["mask.kept", "mask.to_columns"], [COLUMNS]),
        helper.make_node("Unsqueeze", [MASK, "mask.to_rows"], ["mask.rows"]),
        helper.make_node("GreaterOrEqual", ["mask.rows", "mask.zero"], ["mask.every_row"]),
        helper.make_node("And", [COLUMNS, "mask.every_row"], [EVERY_QUERY]),
    ]
    for place, node in enumerate(made):
        graph.node.insert(place, node)
    for node in attentions:
        masked = len(node.input) > QKV and node.input[QKV]
        # The exporter joins masks with And; a bias on the scores would be a sum of numbers.
        if masked and found.maker(node.input[QKV], "And") is not None:
            node.input[QKV] = EVERY_QUERY

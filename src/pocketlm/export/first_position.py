"""Compute what the head reads: of the last layer, the first position alone.

A classifier's head reads one position. Behind the last keys and values every operator works on each
position by itself, so the last layer's queries, attention, output map and feed-forward block are computed
for that one instead of all. The logits are the same; a student of two layers is spared a third of its work.

A graph whose words are asked for needs every position, and stays as it is.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from pocketlm.export.fuse import COLUMNS, EVERY_QUERY, QKV
from pocketlm.export.graph import Graph, drop_unused

ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Erf", "Gelu", "Relu", "Tanh"}
FIRST = "first_position"


def read_first_position(model: onnx.ModelProto) -> int:
    """Compute for the first position alone what nothing else is read of, in place.

    Returns:
        How many operators of the graph that is for.
    """
    graph = model.graph
    found = Graph.of(graph)
    gather = next((node for node in graph.node if _takes_first(found, node)), None)
    if gather is None:
        return 0
    moved = _for_one_position(found, gather)
    if any([_queries_apart(found, node) for node in moved if node.op_type == "Attention"]):
        found = Graph.of(graph)
        moved = _for_one_position(found, gather)
    if not moved:
        return 0
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, dtype=np.int64), FIRST))
    made = {node.output[0] for node in moved}
    for node in moved:
        for place in _states(found, node) or ():
            whole = node.input[place]
            if whole not in made:
                node.input[place] = _first_of(graph, whole)
        if EVERY_QUERY in node.input:
            node.input[QKV] = COLUMNS
    values = [value for value in graph.value_info if value.name not in made]  # their length is 1 now
    del graph.value_info[:]
    graph.value_info.extend(values)
    drop_unused(graph)
    return len(moved)


def _takes_first(found: Graph, node: NodeProto) -> bool:
    """True for `states[:, 0]`."""
    axis = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
    index = found.array(node.input[1]) if node.op_type == "Gather" and axis == [1] else None
    return index is not None and index.size == 1 and int(index.reshape(())) == 0


def _for_one_position(found: Graph, gather: NodeProto) -> list[NodeProto]:
    """The operators before `gather` that are needed for the first position alone, the last one first."""
    moved: list[NodeProto] = []
    wanted = {gather.input[0]}
    readers: dict[str, tuple[int, ...]] = {gather.output[0]: (0,)}
    kept = {output.name for output in found.graph.output}
    for node in reversed(found.graph.node):
        value = node.output[0] if node.output else ""
        if value not in wanted or value in kept:
            continue
        places = _states(found, node)
        read = all(_reads_states(user, value, readers) for user in found.users(value))
        if places is not None and read:
            moved.append(node)
            readers[value] = places
            wanted |= {node.input[place] for place in places}
    return moved


def _reads_states(user: NodeProto, value: str, readers: dict[str, tuple[int, ...]]) -> bool:
    """True where an operator is for one position, and takes `value` at that one only."""
    places = readers.get(user.output[0], ())
    return {place for place, name in enumerate(user.input) if name == value} <= {*places}


def _states(found: Graph, node: NodeProto) -> tuple[int, ...] | None:
    """Inputs of which an operator reads, for each position, that position alone; None where it mixes them."""
    others = tuple(place for place, name in enumerate(node.input) if name and found.array(name) is None)
    if any(found.maker(node.input[place], "Constant") for place in others):
        return None
    if node.op_type in ELEMENTWISE:
        constants = [found.array(name) for name in node.input]
        alike = all(array is None or array.size == 1 or array.size == array.shape[-1] for array in constants)
        return others if alike else None
    if node.op_type == "MatMul":
        return others if others == (0,) else None
    if node.op_type == "LayerNormalization":
        last = all(attribute.i == -1 for attribute in node.attribute if attribute.name == "axis")
        return others if last and others == (0,) else None
    if node.op_type == "Attention":
        whole = any(attribute.name == "q_num_heads" for attribute in node.attribute)
        known = [node.input[place] for place in others[QKV:]] in ([], [EVERY_QUERY])
        return (0,) if whole and known else None
    return None


def _queries_apart(found: Graph, attention: NodeProto) -> bool:
    """Take the queries of an attention from a product of their own; False where they have one."""
    graph, value = found.graph, attention.input[0]
    split = found.maker(value, "Split")
    added = None if split is None else found.maker(split.input[0], "Add")
    product = None if added is None else found.maker(added.input[0], "MatMul")
    if split is None or added is None or product is None or split.output[0] != value:
        return False
    weight, bias, sizes = (found.array(each.input[1]) for each in (product, added, split))
    if weight is None or bias is None or sizes is None:
        return False
    width = int(sizes[0])
    for name, array in (
        ("queries.weight", weight[:, :width]), ("queries.bias", bias[:width]),
        ("rest.weight", weight[:, width:]), ("rest.bias", bias[width:]), ("rest.sizes", sizes[1:]),
    ):  # fmt: skip
        constant = numpy_helper.from_array(np.ascontiguousarray(array), f"{value}.{name}")
        graph.initializer.append(constant)
    nodes = [
        helper.make_node("MatMul", [product.input[0], f"{value}.queries.weight"], [f"{value}.product"]),
        helper.make_node("Add", [f"{value}.product", f"{value}.queries.bias"], [value]),
    ]
    product.input[1], added.input[1] = f"{value}.rest.weight", f"{value}.rest.bias"
    split.input[1] = f"{value}.rest.sizes"
    del split.output[0]
    place = next(place for place, other in enumerate(graph.node) if other is split)
    for node in nodes[::-1]:
        graph.node.insert(place, node)
    return True


def _first_of(graph: onnx.GraphProto, value: str) -> str:
    """The name of a value's first position, [batch, 1, width]; computed once."""
    name = f"{value}.first"
    if not any(name in node.output for node in graph.node):
        makers = [place for place, node in enumerate(graph.node) if value in node.output]
        node = helper.make_node("Gather", [value, FIRST], [name], axis=1)
        graph.node.insert(makers[0] + 1 if makers else 0, node)
    return name

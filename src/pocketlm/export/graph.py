"""What the passes over an exported graph look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Graph:
    """A graph with its nodes by the values they make, and its constants by name."""

    graph: onnx.GraphProto
    makers: dict[str, NodeProto]
    constants: dict[str, TensorProto]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Graph:
        """Look through a graph once; it is stale when the graph changes."""
        return cls(
            graph,
            {output: node for node in graph.node for output in node.output},
            {constant.name: constant for constant in graph.initializer},
        )

    def maker(self, value: str, operator: str) -> NodeProto | None:
        """The node that makes a value, where it is of that operator."""
        node = self.makers.get(value)
        return node if node is not None and node.op_type == operator else None

    def users(self, value: str) -> list[NodeProto]:
        """The nodes that take a value."""
        return [node for node in self.graph.node if value in node.input]

    def array(self, name: str) -> np.ndarray | None:
        """A constant; None where the value is none."""
        constant = self.constants.get(name)
        return None if constant is None else numpy_helper.to_array(constant)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the nodes and constants that no output depends on, and constants that a node makes, in place."""
    wanted = {output.name for output in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if wanted & {*node.output}:
            kept.append(node)
            wanted |= {*node.input}
    made = {output for node in kept for output in node.output}
    constants = [constant for constant in graph.initializer if constant.name in wanted - made]
    values = [value for value in graph.value_info if value.name in wanted]
    for field, left in ((graph.node, kept[::-1]), (graph.initializer, constants), (graph.value_info, values)):
        del field[:]
        cast(list[object], field).extend(left)


def with_nodes(graph: onnx.GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Give a graph other nodes, in place, and drop what is not used then."""
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)


def split_gemms(model: onnx.ModelProto) -> None:
    """Write maps as MatMul, their weights [inputs, outputs], and Add, in place."""
    found, nodes = Graph.of(model.graph), list[NodeProto]()
    for node in model.graph.node:
        fields = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        weight = found.array(node.input[1]) if node.op_type == "Gemm" else None
        plain = fields.get("alpha", 1) == fields.get("beta", 1) == 1 and not fields.get("transA")
        if weight is None or not plain:
            nodes.append(node)
            continue
        (output,), name, bias = node.output, node.input[1], node.input[2:]
        if fields.get("transB"):
            name = f"{name}.turned"
            turned = numpy_helper.from_array(np.ascontiguousarray(weight.T), name)
            model.graph.initializer.append(turned)
        product = f"{output}.product" if bias else output
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [product]))
        nodes += [helper.make_node("Add", [product, *bias], [output])] if bias else []
    with_nodes(model.graph, nodes)


def named_after(model: onnx.ModelProto) -> dict[str, str]:
    """What every value is of: the module whose weights, or else whose bias, makes it."""
    constants = {tensor.name for tensor in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found: dict[str, str] = {}
    for node in model.graph.node:
        own = [name for name in node.input if name in constants]
        # The exporter gives the weight of a product a number, and the bias that follows its name.
        behind = [name for user in users.get(node.output[0], []) for name in user.input if name in constants]
        for name in (*own, *(behind if node.op_type == "MatMul" else [])):
            if "." in name:
                found[node.output[0]] = _module(name)
                break
    return found


def _module(weight: str) -> str:
    """`encoder.layer.0.output.dense` of `model.bert.encoder.layer.0.output.dense.bias`."""
    inside = re.sub(r"^model\.", "", weight)
    inside = re.sub(r"\.(weight|bias|product|codes|rest)(\.turned)?$", "", inside)
    return re.sub(r"^(bert|mpnet|roberta|electra|distilbert|deberta|albert)\.", "", inside)


def session_with(model: onnx.ModelProto, outputs: Sequence[str]) -> Any:
    """Open a graph so that it also returns values between its operators, which are not fused."""
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(
        cast(Any, helper).make_empty_tensor_value_info(name) for name in outputs if name not in known
    )
    ort: Any = onnxruntime
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

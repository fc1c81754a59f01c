from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketlm.export.fuse import COLUMNS, EVERY_QUERY, fuse_attention
from pocketlm.export.graph import drop_unused
from tests.export.conftest import CASES
from tests.tiny_models import ARCHITECTURES

FUSED = [case for case in ARCHITECTURES if case != "mpnet"]


@pytest.mark.parametrize("case", FUSED)
def test_attention_takes_whole_states_from_one_product(exported, case: str) -> None:
    _, path = exported(case)
    model = onnx.load(path)
    operators = Counter(node.op_type for node in model.graph.node)
    assert case in CASES and operators["Attention"] == 2
    for node in model.graph.node:
        if node.op_type == "Attention":
            heads = {a.name: a.i for a in node.attribute if a.name.endswith("num_heads")}
            assert heads["q_num_heads"] == heads["kv_num_heads"] > 1
    # Two layers of four products each, the last layer's queries, and the head, whose maps are two at most.
    assert operators["Split"] == 2 and 9 < operators["MatMul"] <= 11 and "Gemm" not in operators
    onnx.checker.check_model(model)


@pytest.mark.parametrize("case", FUSED)
def test_the_mask_is_the_inputs(exported, case: str) -> None:
    _, path = exported(case)
    nodes = onnx.load(path).graph.node
    assert [node.input[3] for node in nodes if node.op_type == "Attention"] == [EVERY_QUERY, COLUMNS]
    assert "GatherND" not in {node.op_type for node in nodes}


def test_attention_with_a_bias_of_its_own_stays(exported) -> None:
    """MPNet adds relative positions to the scores; its graph has no Attention to simplify."""
    _, path = exported("mpnet")
    assert fuse_attention(onnx.load(path)) == 0


def test_other_graphs_are_left_as_they_are() -> None:
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 3, 4]) for name in ("q", "k", "y")
    }
    node = helper.make_node("Attention", ["q", "k", "k"], ["y"])
    graph = helper.make_graph([node], "g", [values["q"], values["k"]], [values["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    before = model.SerializeToString()
    assert fuse_attention(model) == 0
    assert model.SerializeToString() == before


def test_only_what_no_output_needs_is_dropped() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    nodes = [
        helper.make_node("Add", ["x", "one"], ["a"]),
        helper.make_node("Mul", ["a", "two"], ["unused"]),
        helper.make_node("Neg", ["a"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("one", "two")]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    drop_unused(graph)
    assert [node.op_type for node in graph.node] == ["Add", "Neg"]
    assert [constant.name for constant in graph.initializer] == ["one"]

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pocketlm.export.first_position import read_first_position
from pocketlm.export.onnx import export, largest_difference
from pocketlm.runtime.pocket import session
from tests.tiny_models import ARCHITECTURES, JOINT, TAGGED, classifier

WIDTH = 4


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_the_last_layer_is_computed_for_one_position(exported, tmp_path: Path, case: str) -> None:
    """Of two layers, one has states of all positions behind its attention."""
    _, path = exported(case)
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    made = [shapes[node.output[0]] for node in model.graph.node if node.op_type in {"Gelu", "Erf"}]
    gelus = [shape for shape in made if len(shape) == 3]  # a head may have one of its own
    whole, last = gelus[0], gelus[-1]
    assert (whole[1], last[1]) == ("length", 1)
    onnx.checker.check_model(model)


@pytest.mark.parametrize("task", [JOINT, TAGGED])
def test_words_need_every_position(tmp_path: Path, task: Any) -> None:
    model = classifier("bert", task, layers=2)
    export(model, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx")
    before = graph.SerializeToString()
    assert read_first_position(graph) == 0
    assert graph.SerializeToString() == before
    assert largest_difference(model, tmp_path / "m.onnx", [("the film",), ("a",)]) < 1e-4


def block(extra_reader: bool = False, bias_rows: int = 1, mixes: bool = False) -> onnx.ModelProto:
    """relu(x · W + b) + x, optionally with something that mixes positions, and its first position."""
    random = np.random.default_rng(0)
    constants = {
        "W": random.normal(size=(WIDTH, WIDTH)).astype(np.float32),
        "b": random.normal(size=(bias_rows, WIDTH)).astype(np.float32),
        "zero": np.array(0, dtype=np.int64),
    }
    nodes = [
        helper.make_node("Neg", ["x"], ["y"]),
        helper.make_node("MatMul", ["y", "W"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["biased"]),
        helper.make_node("Softmax", ["biased"], ["active"], axis=1)
        if mixes
        else helper.make_node("Relu", ["biased"], ["active"]),
        helper.make_node("Add", ["active", "y"], ["sum"]),
        helper.make_node("Gather", ["sum", "zero"], ["first"], axis=1),
    ]
    outputs = [helper.make_tensor_value_info("first", TensorProto.FLOAT, ["batch", WIDTH])]
    if extra_reader:
        nodes.append(helper.make_node("Neg", ["active"], ["all"]))
        outputs.append(helper.make_tensor_value_info("all", TensorProto.FLOAT, ["batch", "length", WIDTH]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH])
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def answers(model: onnx.ModelProto, path: Path, names: list[str]) -> list[np.ndarray]:
    onnx.save(model, path)
    x = np.random.default_rng(1).normal(size=(3, 5, WIDTH)).astype(np.float32)
    return session(path, 1).run(names, {"x": x})


@pytest.mark.parametrize(
    ("case", "moved"),
    [
        ({}, 4),
        ({"mixes": True}, 1),  # the sum behind it alone
        ({"bias_rows": 5}, 2),  # a bias of its own for each position is not moved
        ({"extra_reader": True}, 1),
    ],
)
def test_what_is_moved_says_the_same(tmp_path: Path, case: dict[str, Any], moved: int) -> None:
    names = ["first", *(["all"] if case.get("extra_reader") else [])]
    before = answers(block(**case), tmp_path / "before.onnx", names)
    model = block(**case)
    assert read_first_position(model) == moved
    assert Counter(node.op_type for node in model.graph.node)["Gather"] >= 2
    for one, other in zip(before, answers(model, tmp_path / "after.onnx", names), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-6)


def test_a_graph_that_reads_no_first_position_stays() -> None:
    model = block()
    model.graph.node[-1].attribute[0].i = 0
    before = model.SerializeToString()
    assert read_first_position(model) == 0
    assert model.SerializeToString() == before


def test_padding_changes_nothing_for_the_last_layer(exported) -> None:
    model, path = exported("bert")
    encoded = model.encode([("the film", "a film"), ("a", "a")])
    inputs = model.inputs(encoded, [0, 1])
    run = session(path, 1)
    together = run.run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0]
    alone = model.inputs(encoded, [1])
    with torch.no_grad():
        wanted = model.model(**alone).logits.numpy()
    np.testing.assert_allclose(together[1:], wanted, atol=1e-5)

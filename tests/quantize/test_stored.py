"""Weights of eight bits: what is rounded, what is left alone, and what a look-up gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper, numpy_helper

from pocketlm.artifact import Artifact
from pocketlm.quantize.control import parts_of
from pocketlm.quantize.stored import SMALLEST_TABLE, quantize_embeddings, quantize_rows, store_halves
from pocketlm.runtime.pocket import session
from tests.quantize.conftest import Answers
from tests.tiny import NO_DEADLINE

tables = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False),
)


@given(table=tables)
@NO_DEADLINE
def test_a_rows_error_is_at_most_half_its_scale(table: np.ndarray) -> None:
    codes, scale = quantize_rows(table)
    assert codes.dtype == np.int8 and codes.shape == table.shape
    assert scale.dtype == np.float32 and scale.shape == (len(table), 1)
    assert (scale > 0).all()
    assert codes.min() >= -127  # symmetric: -128 is not used
    error = np.abs(table.astype(np.float64) - codes * scale.astype(np.float64))
    assert (error <= scale * 0.5 * (1 + 1e-4)).all()
    assert not codes[(table == 0)].any()


@given(table=tables)
@NO_DEADLINE
def test_a_row_uses_the_whole_range(table: np.ndarray) -> None:
    codes, _ = quantize_rows(table)
    for row, code in zip(table, codes, strict=True):
        assert np.abs(code).max() == (127 if np.abs(row).max() > 0 else 0)


def test_rows_have_scales_of_their_own() -> None:
    codes, scale = quantize_rows(np.array([[127.0, -1.0], [0.0, 0.0], [1.27, 0.01]], dtype=np.float32))
    assert codes.tolist() == [[127, -1], [0, 0], [127, 1]]
    assert scale[:, 0].tolist() == pytest.approx([1.0, 1.0, 0.01])


def graph(
    nodes: list[onnx.NodeProto], initializers: dict[str, np.ndarray], outputs: dict[str, int]
) -> onnx.ModelProto:
    """A graph of ids [n] to outputs of some type."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in initializers.items()],
        ),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    )


def run(model: onnx.ModelProto, folder: Path, ids: np.ndarray) -> list[np.ndarray]:
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return session(path, None).run([output.name for output in model.graph.output], {"ids": ids})


def a_table(rows: int = 64, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)


def dequantized(table: np.ndarray) -> np.ndarray:
    codes, scale = quantize_rows(table)
    return codes.astype(np.float32) * scale


IDS = np.array([0, 5, 63, 5], dtype=np.int64)
FLOAT = TensorProto.FLOAT


def test_a_quantized_look_up_gives_the_dequantized_rows(tmp_path: Path) -> None:
    table = a_table()
    model = graph([helper.make_node("Gather", ["table", "ids"], ["out"])], {"table": table}, {"out": FLOAT})
    assert quantize_embeddings(model) == 1
    (out,) = run(model, tmp_path, IDS)
    assert np.array_equal(out, dequantized(table)[IDS])
    assert "table" not in {tensor.name for tensor in model.graph.initializer}


def test_two_look_ups_share_one_table(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], [name], axis=0) for name in ("one", "two")]
    model = graph(nodes, {"table": a_table()}, {"one": FLOAT, "two": FLOAT})
    assert quantize_embeddings(model) == 1
    assert len(model.graph.initializer) == 2
    for out in run(model, tmp_path, IDS):
        assert np.array_equal(out, dequantized(a_table())[IDS])


def test_two_tables_are_two() -> None:
    nodes = [helper.make_node("Gather", [f"table{name}", "ids"], [name]) for name in ("a", "b")]
    model = graph(nodes, {"tablea": a_table(), "tableb": a_table(32)}, {"a": FLOAT, "b": FLOAT})
    assert quantize_embeddings(model) == 2


@pytest.mark.parametrize(
    ("nodes", "table", "kind"),
    [
        # Small ones are not worth it.
        ([helper.make_node("Gather", ["table", "ids"], ["out"])], a_table(SMALLEST_TABLE // 32 - 1), FLOAT),
        # Numbers of positions are no weights, and would be rounded.
        (
            [helper.make_node("Gather", ["table", "ids"], ["out"])],
            np.arange(2048, dtype=np.int64).reshape(64, 32),
            TensorProto.INT64,
        ),
        # Columns have other scales than rows.
        ([helper.make_node("Gather", ["table", "ids"], ["out"], axis=1)], a_table(32, 64), FLOAT),
        # Tied weights: something else reads the table too.
        (
            [
                helper.make_node("Gather", ["table", "ids"], ["rows"]),
                helper.make_node("Transpose", ["table"], ["columns"], perm=[1, 0]),
                helper.make_node("MatMul", ["rows", "columns"], ["out"]),
            ],
            a_table(),
            FLOAT,
        ),
        # Three dimensions are no embedding table.
        ([helper.make_node("Gather", ["table", "ids"], ["out"])], a_table(128).reshape(64, 2, 32), FLOAT),
    ],
    ids=["small", "integers", "columns", "tied", "three dimensions"],
)  # fmt: skip
def test_other_look_ups_are_left_alone(
    tmp_path: Path, nodes: list[onnx.NodeProto], table: np.ndarray, kind: int
) -> None:
    ids = np.array([0, 5, 20], dtype=np.int64)
    before = run(graph(nodes, {"table": table}, {"out": kind}), tmp_path, ids)
    model = graph(nodes, {"table": table}, {"out": kind})
    assert quantize_embeddings(model) == 0
    assert np.array_equal(run(model, tmp_path, ids)[0], before[0])


def test_halves_answer_as_the_whole(exported: Artifact, answers: Answers, tmp_path: Path) -> None:
    model, halved = onnx.load(exported.parts["onnx"]), tmp_path / "model.onnx"
    parts = parts_of(model)
    store_halves(model, parts)
    onnx.save(model, halved)
    assert sum(f"{node.output[0]}_half" in node.input for node in model.graph.node) == len(parts)
    assert halved.stat().st_size < 0.6 * exported.parts["onnx"].stat().st_size
    wanted, got = answers(exported.parts["onnx"]), answers(halved)
    assert 0 < np.abs(got - wanted).max() < 0.002 * np.abs(wanted).max()

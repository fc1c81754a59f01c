"""What zeros are worth: bytes that are really there, and a stopwatch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pocketlm import shrink
from pocketlm.measure import zeros as zeros_module
from pocketlm.measure.zeros import matrices_of, stored_sparsely, told, without_zeros, worth_of_zeros
from pocketlm.runtime.manifest import read_info
from pocketlm.runtime.pocket import session
from tests.conftest import Tiny
from tests.easy import QUICK
from tests.tiny import NO_DEADLINE


def graph(path: Path, sparsity: float, width: int = 64) -> Path:
    """Ids, a table, and a product with a matrix of which a share is zero."""
    chance = np.random.default_rng(0)
    matrix = chance.normal(size=(width, width)).astype(np.float32)
    matrix[chance.random((width, width)) < sparsity] = 0
    table = chance.normal(size=(10, width)).astype(np.float32)
    table[:5] = 0
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "matrix"], ["out"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(table, "table")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def answer(path: Path):
    run = session(path, 1)
    return lambda index: run.run(["out"], {"ids": np.array([index], dtype=np.int64)})


def test_a_graph_with_zeros_is_weighed_and_timed(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", 0.75)
    found = worth_of_zeros(path, tmp_path / "work", answer, 4)
    assert found["sparsity"] == pytest.approx(0.75, abs=0.03)  # the table's zeros do not count
    assert found["graph_bytes"] == path.stat().st_size
    kept = round((1 - found["sparsity"]) * 64 * 64)
    assert found["graph_bytes"] - found["sparse_bytes"] == 4 * 64 * 64 - (64 * 64 // 8 + 4 * kept)
    assert found["coded_bytes"] < found["graph_bytes"]
    assert found["faster_x"]["low"] <= found["faster_x"]["median"] <= found["faster_x"]["high"]
    assert list((tmp_path / "work").iterdir()) == []
    assert list(matrices_of(onnx.load(path))) == ["matrix"]


@NO_DEADLINE
@given(st.integers(0, 99), st.floats(0, 1))
def test_what_is_stored_is_enough_to_read_it_again(seed: int, sparsity: float) -> None:
    chance = np.random.default_rng(seed)
    array = chance.integers(1, 100, (7, 9)).astype(np.int8)
    array[chance.random((7, 9)) < sparsity] = 0
    stored = stored_sparsely(array)
    bits = np.unpackbits(np.frombuffer(stored[:8], dtype=np.uint8), count=63).astype(bool)
    again = np.zeros(63, dtype=np.int8)
    again[bits] = np.frombuffer(stored[8:], dtype=np.int8)
    assert np.array_equal(again.reshape(7, 9), array)
    filled = without_zeros(array, chance)
    assert (filled != 0).all() and np.array_equal(filled[array != 0], array[array != 0])


def test_the_verdict_names_three_things_apart() -> None:
    zeros = {
        "sparsity": 0.8, "graph_bytes": 4e6, "sparse_bytes": 1.5e6, "coded_bytes": 1.2e6,
        "faster_x": {"median": 1.01, "low": 0.98, "high": 1.03},
    }  # fmt: skip
    assert told(zeros, 9.04e6) == (
        "80% of the weights in matrices are zero: 1.50 MB stored sparsely and 1.20 MB entropy-coded instead "
        "of 4.00 MB; 9.0 MB of RAM, zeros and all; not faster here (1.01x, 0.98 to 1.03)."
    )
    faster = {**zeros, "faster_x": {"median": 1.5, "low": 1.4, "high": 1.6}}
    assert "1.50x faster here than the same graph without zeros" in told(faster, None)
    assert "RAM not measured" in told(faster, None)


def test_a_sparse_pocket_says_what_its_zeros_are_worth(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(zeros_module, "ROUNDS", 10)
    recipe = tmp_path / "sparse.yaml"
    stages = ["prepare", "finetune", "student", {"teacher_outputs": {"states": []}}]
    stages += [{"magnitude": {"sparsity": 0.8, "training": {"hidden": 0.0, "epochs": 2}}}]
    stages += ["export", "int8", "pack", {"controls": {"enabled": False}}, "measure"]
    recipe.write_text(json.dumps({"seed": 0, "stages": stages}))
    names = [stage if isinstance(stage, str) else next(iter(stage)) for stage in stages]
    quick = [one for one in QUICK if one[0] in names and one[0] != "controls"]
    folder = shrink(
        str(tiny.teacher), str(tiny.data), recipe=recipe, overrides=quick, out=tmp_path / "out", threads=1
    )
    ledger = read_info(folder)["ledger"]
    assert ledger["zeros"]["sparsity"] > 0.6  # the head's map and the rounding's own zeros count, too
    assert any("of the weights in matrices are zero" in verdict for verdict in ledger["verdicts"])

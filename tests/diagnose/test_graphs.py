"""The weights of quantized graphs, as the doctor reads them back."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from pocketlm.artifact import Artifact
from pocketlm.diagnose.graphs import maps, of_graphs
from pocketlm.quantize.calibrated import StaticInt8
from pocketlm.quantize.control import named
from pocketlm.quantize.int8 import QuantizeInt8
from pocketlm.quantize.stored import store_halves
from pocketlm.quantize.weight_only import WeightOnly
from pocketlm.stage import Context, Stage
from tests.quantize.conftest import exported as exported


@pytest.mark.parametrize(
    ("stage", "most", "share"),
    [
        (QuantizeInt8(compute="int8", tolerance=None), 0.02, 0.02),
        (QuantizeInt8(compute="float32", tolerance=None), 0.01, 0.02),
        (StaticInt8(tolerance=None), 0.02, 0.02),
        (WeightOnly(tolerance=None), 0.15, 0.05),
        (WeightOnly(bits=3, tolerance=None), 0.3, 0.2),
    ],
    ids=["int8", "stored", "static", "4 bits", "3 bits"],
)
def test_the_weights_of_every_kind_are_read_back(
    exported: Artifact, tmp_path: Path, stage: Stage, most: float, share: float
) -> None:
    done = stage(exported, Context(tmp_path, tmp_path))
    floats, products = named(exported, tmp_path, ())
    found = maps(floats, done.parts["onnx"])
    assert {one.of for one in found} <= {*products} and len(found) >= 10
    assert all(one.error < most and one.saturated < share for one in found)
    assert sum(one.error > 0 for one in found) >= 10
    assert all(one.unexplained < 1e-3 for one in found) and not of_graphs([], found)


def test_halves_are_read_back(exported: Artifact, tmp_path: Path) -> None:
    floats, parts = named(exported, tmp_path, ())
    model = onnx.load(floats)
    store_halves(model, parts)
    onnx.save(model, tmp_path / "halves.onnx")
    found = maps(floats, tmp_path / "halves.onnx")
    assert len(found) >= 10 and all(0 < one.error < 1e-3 for one in found)


def test_a_weight_that_is_damaged_is_seen(exported: Artifact, tmp_path: Path) -> None:
    done = StaticInt8(tolerance=None)(exported, Context(tmp_path, tmp_path))
    floats, _ = named(exported, tmp_path, ())
    model = onnx.load(done.parts["onnx"])
    scale = next(t for t in model.graph.initializer if t.name.endswith("_scale") and len(t.dims) == 1)
    values = onnx.numpy_helper.to_array(scale) * 2
    scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    found = maps(floats, tmp_path / "damaged.onnx")
    assert sum(one.error > 0.5 for one in found) == 1 and len(of_graphs([], found)) == 1

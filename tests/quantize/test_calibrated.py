"""Static 8 bits: ranges by hand, the histogram's own formulas, and what the graph computes in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pocketlm.artifact import Artifact
from pocketlm.errors import RecipeError
from pocketlm.quantize.calibrated import BINS, Calibration, Seen, StaticInt8, entropy, minmax, percentile
from pocketlm.stage import Context
from tests.quantize.conftest import Answers

CHANCE = np.random.default_rng(0)
CALIBRATIONS: tuple[Calibration, ...] = ("minmax", "percentile", "entropy")


def seen(values: np.ndarray) -> Seen:
    end = max(abs(values.min()), abs(values.max()))
    return Seen(values.min(), values.max(), np.histogram(values, BINS, (-end, end))[0])


def test_minmax_is_all_that_was_seen_and_zero() -> None:
    assert minmax(seen(np.array([-1.0, 0.5, 3.0]))) == (-1.0, 3.0)
    assert minmax(seen(np.array([1.0, 3.0]))) == (0.0, 3.0)


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9])
def test_a_percentile_holds_so_many_values_and_not_many_more(percent: float) -> None:
    values = CHANCE.normal(size=200_000) + 0.3
    low, high = percentile(seen(values), percent)
    inside = ((values >= low) & (values <= high)).mean() * 100
    assert percent <= inside < percent + 0.2 * (100 - percent)
    below, above = (values < low).mean(), (values > high).mean()
    assert below == pytest.approx(above, rel=0.3)


def test_all_percent_are_all_that_was_seen() -> None:
    values = CHANCE.normal(size=1000)
    assert percentile(seen(values), 100) == pytest.approx(minmax(seen(values)), rel=2e-3)


def test_least_entropy_leaves_outliers_out_and_nothing_else() -> None:
    even = CHANCE.uniform(-1, 1, size=100_000)
    assert entropy(seen(even)) == pytest.approx((-1, 1), abs=0.02)
    values = np.append(CHANCE.normal(size=200_000), [40.0, -37.0])
    low, high = entropy(seen(values))
    assert -12 < low < -2 and 2 < high < 12


def test_ranges_hold_zero_and_no_more_than_was_seen() -> None:
    positive = np.abs(CHANCE.normal(size=10_000)) + 0.1
    for low, high in (minmax(seen(positive)), percentile(seen(positive), 99.9), entropy(seen(positive))):
        assert low == 0.0 and 0 < high <= positive.max()


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_the_graph_says_nearly_the_same(
    exported: Artifact, answers: Answers, tmp_path: Path, calibration: Calibration
) -> None:
    stage = StaticInt8(calibration, tolerance=None)
    done = stage(exported, Context(tmp_path, tmp_path))
    assert done.figures["quantization"] == {"bits": 8, "compute": "int8", "calibration": calibration}
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    wanted, got = answers(exported.parts["onnx"]), answers(done.parts["onnx"])
    assert not np.array_equal(wanted, got)
    assert np.abs(wanted - got).max() < 0.2 * np.abs(wanted).max()
    model = onnx.load(done.parts["onnx"])
    onnx.checker.check_model(model)
    operators = Counter(node.op_type for node in model.graph.node)
    # Two layers of four, the last one's queries, and the pooler; a head of three labels is left in float32.
    assert operators["MatMul"] == 11
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    codes = [array for name, array in arrays.items() if name.endswith("_codes") and f"{name[:-6]}_near" in
             {node.output[0] for node in model.graph.node}]  # fmt: skip
    assert len(codes) == 10 and all(array.dtype == np.int8 and np.abs(array).max() == 64 for array in codes)


def test_the_runtime_multiplies_integers(exported: Artifact, tmp_path: Path) -> None:
    import onnxruntime

    done = StaticInt8(tolerance=None)(exported, Context(tmp_path, tmp_path))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(done.parts["onnx"], options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    integers = [name for name in operators if name in ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm")]
    assert sum(operators[name] for name in integers) >= 9, operators


def test_what_hurts_too_much_and_what_is_kept_stays_in_float(exported: Artifact, tmp_path: Path) -> None:
    name = "encoder.layer.0.intermediate.dense"
    done = StaticInt8(keep=(name,), tolerance=1.0)(exported, Context(tmp_path, tmp_path))
    told = done.figures["quantization"]
    assert told["floats"] == [] and 0 <= told["score"] <= 1
    node = next(node for node in onnx.load(done.parts["onnx"]).graph.node if node.name == name)
    assert not node.input[1].endswith("_near")
    with pytest.raises(RecipeError, match=r"\['nothing'\]; the graph has "):
        StaticInt8(keep=("nothing",))(exported, Context(tmp_path, tmp_path))


@pytest.mark.parametrize("fields", [{"percent": 50}, {"percent": 101}, {"texts": 0}, {"tolerance": -1}])
def test_what_is_out_of_range_is_told(fields: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="allowed"):
        StaticInt8(**fields)

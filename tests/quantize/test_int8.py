from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pocketlm.artifact import Artifact
from pocketlm.export.onnx import export
from pocketlm.models.load import Classifier
from pocketlm.quantize import int8
from pocketlm.quantize.int8 import QuantizeInt8, quantize_matmuls
from pocketlm.quantize.stored import quantize_rows
from pocketlm.runtime.pocket import session
from pocketlm.stage import Context
from pocketlm.timing import Timings
from tests.tiny_models import MAX_LENGTH, SINGLE, classifier, examples_of, prepared


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Path]:
    """A student wide enough that weights are most of its file."""
    made = classifier(layers=1, hidden_size=256, intermediate_size=1024)
    path = tmp_path_factory.mktemp("floats") / "model.onnx"
    export(made, path)
    return made, path


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, floats: tuple[Classifier, Path]) -> Path:
    return stage(
        tmp_path_factory.mktemp("int8"), floats[1], QuantizeInt8(tolerance=None, compute="int8")
    ).parts["onnx"]


def stage(folder: Path, path: Path, quantize: QuantizeInt8) -> Artifact:
    return quantize(Artifact("tiny", {"onnx": path}), Context(folder, folder))


def logits(made: Classifier, path: Path, batch: int = 12) -> np.ndarray:
    encoded = made.encode(examples_of(SINGLE, batch).texts)
    feed = {name: tensor.numpy() for name, tensor in made.inputs(encoded, range(batch)).items()}
    return session(path, None).run(["logits"], feed)[0]


def test_an_int8_graph_says_nearly_the_same(floats: tuple[Classifier, Path], quantized: Path) -> None:
    made, path = floats
    wanted, got = logits(made, path), logits(made, quantized)
    spread = wanted.std(axis=0).min()
    assert not np.array_equal(wanted, got)
    assert np.abs(wanted - got).max() < 0.15 * np.abs(wanted).max()
    assert np.abs(wanted - got).mean() < 0.25 * spread
    assert np.corrcoef(wanted.ravel(), got.ravel())[0, 1] > 0.99


def test_weights_use_seven_bits_so_that_no_sum_of_two_products_overflows(quantized: Path) -> None:
    model = onnx.load(quantized)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    # Keys and values in one, queries, output, rising, falling, pooler and head.
    assert len(products) == 7
    assert not [node for node in model.graph.node if node.op_type == "MatMul"]
    for node in products:
        weights, zero = arrays[node.input[1]], arrays[node.input[3]]
        assert weights.dtype == np.int8
        assert weights.min() >= -64 and weights.max() <= 64
        assert np.abs(weights).max(axis=0).min() >= 60  # a scale of its own for every output channel
        assert not zero.any()
        assert 2 * 255 * int(np.abs(weights.astype(np.int64)).max()) < 2**15


def test_quantized_weights_are_the_weights(floats: tuple[Classifier, Path], quantized: Path) -> None:
    made, _ = floats
    model = onnx.load(quantized)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {name: tensor.numpy() for name, tensor in made.model.state_dict().items()}
    own = "bert.encoder.layer.0.attention.self"
    # The last layer's queries are of one position, and have a product of their own.
    weights["merged"] = np.concatenate([weights[f"{own}.{part}.weight"] for part in ("key", "value")])
    found = 0
    for name, array in arrays.items():
        if not name.endswith("_quantized"):
            continue
        scale = arrays[name.removesuffix("_quantized") + "_scale"]
        alike = [weight.T for weight in weights.values() if weight.shape == array.shape[::-1]]
        same = [weight for weight in alike if (np.abs(array * scale - weight) <= scale / 2 * 1.01).all()]
        assert len(same) == 1, name
        found += 1
    assert found == 7
    table = weights["bert.embeddings.word_embeddings.weight"]
    codes = [array for name, array in arrays.items() if name.endswith("word_embeddings.weight_codes")]
    assert len(codes) == 1 and np.array_equal(codes[0], quantize_rows(table)[0])


def test_the_file_is_about_four_times_smaller(floats: tuple[Classifier, Path], quantized: Path) -> None:
    ratio = floats[1].stat().st_size / quantized.stat().st_size
    assert 3.5 < ratio < 4.05


def test_the_stage_tells_what_it_did(tmp_path: Path, floats: tuple[Classifier, Path]) -> None:
    made, path = floats
    wanted = logits(made, path)
    sizes = {}
    for matmuls in (True, False):
        for embeddings in (True, False):
            folder = tmp_path / f"{matmuls}-{embeddings}"
            folder.mkdir()
            done = stage(folder, path, QuantizeInt8(matmuls, embeddings, tolerance=None, compute="int8"))
            # Words, positions and segments are tables; with 2 segments of 256 only the first two are large.
            tables = 2 if embeddings else 0
            assert done.figures["quantization"] == {
                "bits": 8, "matmuls": matmuls, "compute": "int8" if matmuls else "float32",
                "embedding_tables": tables,
            }  # fmt: skip
            assert [file.name for file in folder.iterdir()] == ["model.onnx"]
            operators = {node.op_type for node in onnx.load(done.parts["onnx"]).graph.node}
            assert ("MatMulInteger" in operators) == matmuls
            sizes[matmuls, embeddings] = done.parts["onnx"].stat().st_size
            got = logits(made, done.parts["onnx"])
            assert np.array_equal(got, wanted) == (not matmuls and not embeddings)
            assert np.abs(wanted - got).max() < 0.15 * np.abs(wanted).max()
    assert sizes[True, True] < sizes[True, False] < sizes[False, True] < sizes[False, False]


def test_quantizing_leaves_its_input(tmp_path: Path, floats: tuple[Classifier, Path]) -> None:
    before = floats[1].read_bytes()
    quantize_matmuls(floats[1], tmp_path / "out.onnx")
    assert floats[1].read_bytes() == before


def test_stored_weights_are_multiplied_out_and_compute_in_float(
    tmp_path: Path, floats: tuple[Classifier, Path], quantized: Path
) -> None:
    made, path = floats
    done = stage(tmp_path, path, QuantizeInt8(tolerance=None, compute="float32"))
    operators = {node.op_type for node in onnx.load(done.parts["onnx"]).graph.node}
    assert "MatMulInteger" not in operators and "MatMul" in operators
    assert done.parts["onnx"].stat().st_size == pytest.approx(quantized.stat().st_size, rel=0.03)
    wanted = logits(made, path)
    stored, integers = logits(made, done.parts["onnx"]), logits(made, quantized)
    # No activation is rounded, and weights have all of their 8 bits.
    assert 0 < np.abs(stored - wanted).mean() < 0.8 * np.abs(integers - wanted).mean()


@pytest.mark.parametrize(("faster", "operator"), [("int8", "MatMulInteger"), ("float32", "MatMul")])
def test_products_are_computed_in_what_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str, operator: str
) -> None:
    made = classifier(layers=1)
    made.save(tmp_path / "student")
    export(made, tmp_path / "model.onnx")
    artifact = prepared(tmp_path, SINGLE, train=24, valid=30).with_figures(max_length=MAX_LENGTH)
    artifact = artifact.with_part("student", tmp_path / "student").with_part("onnx", tmp_path / "model.onnx")

    def timed(runs: Mapping[str, Callable[[int], object]], *_: int) -> Timings:
        said = [run(0) for run in runs.values()]
        assert not np.array_equal(cast(np.ndarray, said[0]), cast(np.ndarray, said[1]))
        return Timings({name: [1.0 if name == faster else 2.0] * 9 for name in runs})

    monkeypatch.setattr(int8, "interleave", timed)
    context = Context(tmp_path / "out", tmp_path / "out")
    context.folder.mkdir()
    done = QuantizeInt8(tolerance=None)(artifact, context)
    assert operator in {node.op_type for node in onnx.load(done.parts["onnx"]).graph.node}
    told = done.figures["quantization"]
    assert (told["compute"], told[f"{faster}_ms"]) == (faster, 1.0)

"""Weights of 4 bits: the rounding by hand, the standard's packing, and grids that are kept."""

from __future__ import annotations

import lzma
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from pocketlm.artifact import Artifact
from pocketlm.errors import RecipeError
from pocketlm.export.onnx import export
from pocketlm.models.load import Classifier
from pocketlm.quantize.aware import on_grid
from pocketlm.quantize.gptq import Gptq
from pocketlm.quantize.weight_only import WeightOnly, grids_of, packed, quantize_groups
from pocketlm.stage import Context
from tests.quantize.conftest import Answers
from tests.tiny import NO_DEADLINE
from tests.tiny_models import MAX_LENGTH, SINGLE

ROWS = np.random.default_rng(0).normal(size=(6, 70)).astype(np.float32)


@given(width=st.integers(1, 70), group=st.sampled_from([16, 32]), bits=st.sampled_from([3, 4]))
@NO_DEADLINE
def test_an_error_is_at_most_half_a_step_of_its_group(width: int, group: int, bits: int) -> None:
    rows = ROWS[:, :width]
    codes, scale = quantize_groups(rows, group, bits)
    groups = -(-width // group)
    assert codes.shape == (6, groups * group) and scale.shape == (6, groups)
    assert codes.dtype == np.int8 and np.abs(codes).max() <= {3: 3, 4: 7}[bits] and not codes[:, width:].any()
    near = (codes.reshape(6, groups, group) * scale[..., None]).reshape(6, -1)[:, :width]
    steps = np.repeat(scale, group, axis=1)[:, :width]
    assert (np.abs(near - rows) <= steps / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_is_on_a_grid_is_not_rounded_again(bits: int) -> None:
    rows = on_grid(torch.from_numpy(ROWS[:, :64]), bits).numpy()
    codes, scale = quantize_groups(rows, 16)
    assert np.allclose((codes.reshape(6, 4, 16) * scale[..., None]).reshape(6, -1), rows, atol=1e-6)
    assert not grids_of(ROWS).any()


def test_two_codes_are_in_a_byte_the_first_one_low() -> None:
    codes = np.array([[1, 2, 15, 0], [3, 4, 5, 6]], dtype=np.uint8)
    assert packed(codes).tolist() == [[0x21, 0x0F], [0x43, 0x65]]


@pytest.fixture(scope="module")
def four_bits(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("four")
    return WeightOnly(tolerance=None)(exported, Context(folder, folder))


def test_the_graph_says_nearly_the_same(exported: Artifact, four_bits: Artifact, answers: Answers) -> None:
    wanted, got = answers(exported.parts["onnx"]), answers(four_bits.parts["onnx"])
    assert np.corrcoef(wanted.ravel(), got.ravel())[0, 1] > 0.85
    assert not np.array_equal(wanted, got)
    wanted_figures = {"bits": 4, "compute": "weights only", "group": 32}
    assert wanted_figures.items() <= four_bits.figures["quantization"].items()


def test_its_weights_are_those_that_groups_give(exported: Artifact, four_bits: Artifact) -> None:
    floats = {t.name: numpy_helper.to_array(t) for t in onnx.load(exported.parts["onnx"]).graph.initializer}
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(four_bits.parts["onnx"]).graph.initializer}
    found = 0
    for name, array in stored.items():
        weight = floats.get(name.removesuffix("_codes"))
        if weight is None or name in floats:
            continue
        table = array.dtype == np.uint8
        codes, scale = quantize_groups(weight if table else weight.T, 32)
        if table:
            assert np.array_equal(array, packed((codes + 8).astype(np.uint8)))
        else:
            assert np.array_equal(array.astype(np.int8), codes.T)
            assert np.allclose(stored[f"{name.removesuffix('_codes')}_scale"], scale.T)
        found += 1
    assert found >= 11


def test_the_runtime_keeps_four_bits_in_memory(four_bits: Artifact, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(four_bits.parts["onnx"], options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["MatMulNBits"] == 10 and operators["GatherBlockQuantized"] >= 1
    assert "DequantizeLinear" not in operators


def test_it_is_about_an_eighth_of_its_weights(exported: Artifact, four_bits: Artifact) -> None:
    model = onnx.load(exported.parts["onnx"])
    large = sum(np.prod(t.dims) for t in model.graph.initializer if np.prod(t.dims) >= 1024)
    saved = exported.parts["onnx"].stat().st_size - four_bits.parts["onnx"].stat().st_size
    # 4 of 32 bits, and a scale of 32 bits for 32 weights.
    assert saved == pytest.approx(4 * large * (1 - 5 / 32), rel=0.03)


def test_a_grid_that_the_student_was_rounded_to_is_kept(
    exported: Artifact, answers: Answers, tmp_path: Path
) -> None:
    for part in ("gptq", "graph"):
        (tmp_path / part).mkdir()
    context = Context(tmp_path / "gptq", tmp_path / "gptq")
    rounded = Gptq(weight_bits=4, embedding_bits=4, texts=32)(exported, context)
    path = tmp_path / "rounded.onnx"
    export(Classifier.load(rounded.parts["student"], SINGLE, MAX_LENGTH), path)
    rounded = rounded.with_part("onnx", path)
    done = WeightOnly(tolerance=None)(rounded, Context(tmp_path / "graph", tmp_path / "graph"))
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(done.parts["onnx"]).graph.initializer}
    floats = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    found = 0
    for name, codes in arrays.items():
        weight = floats.get(name.removesuffix("_codes"))
        if weight is not None and str(codes.dtype) == "int4":
            scale = arrays[f"{name.removesuffix('_codes')}_scale"]
            assert np.allclose(codes.astype(np.float32) * np.repeat(scale, 32, axis=0), weight, atol=1e-6)
            found += 1
    assert found == 10
    wanted, got = answers(path), answers(done.parts["onnx"])
    assert np.abs(wanted - got).max() < 0.05 * np.abs(wanted).max()  # activations of 8 bits alone


def test_tables_may_have_eight_bits_or_none(exported: Artifact, answers: Answers, tmp_path: Path) -> None:
    wanted, sizes = answers(exported.parts["onnx"]), []
    for bits in (8, None):
        done = WeightOnly(embedding_bits=bits, tolerance=None)(exported, Context(tmp_path, tmp_path))
        model = onnx.load(done.parts["onnx"])
        assert "GatherBlockQuantized" not in {node.op_type for node in model.graph.node}
        assert {one.domain for one in model.opset_import} == {""}  # nothing but the standard
        assert np.corrcoef(wanted.ravel(), answers(done.parts["onnx"]).ravel())[0, 1] > 0.9
        sizes.append(done.parts["onnx"].stat().st_size)
    assert sizes[0] < sizes[1]


def test_three_bits_take_the_room_of_four_until_they_are_packed(
    exported: Artifact, four_bits: Artifact, answers: Answers, tmp_path: Path
) -> None:
    three = WeightOnly(bits=3, embedding_bits=3, tolerance=None)(exported, Context(tmp_path, tmp_path))
    graphs = [part.parts["onnx"].read_bytes() for part in (four_bits, three)]
    assert len(graphs[0]) == len(graphs[1])
    four, less = (len(lzma.compress(graph)) for graph in graphs)
    assert less < 0.9 * four
    wanted = answers(exported.parts["onnx"]).ravel()
    near = [np.corrcoef(wanted, answers(part.parts["onnx"]).ravel())[0, 1] for part in (four_bits, three)]
    assert 0.5 < near[1] < near[0]
    assert three.figures["quantization"]["bits"] == 3


def test_a_group_that_fits_no_product_is_told(
    exported: Artifact, four_bits: Artifact, tmp_path: Path
) -> None:
    done = four_bits.figures["quantization"]
    assert done["products"] == 10 and done["products_in_groups"] == 10
    with pytest.raises(RecipeError, match=r"group=256 does not divide .* \(64, 128\); try 16 or 32 or 64"):
        WeightOnly(group=256)(exported, Context(tmp_path, tmp_path))


@pytest.mark.parametrize("fields", [{"group": 20}, {"tolerance": -0.1}])
def test_what_is_out_of_range_is_told(fields: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=r"allowed|one of 16"):
        WeightOnly(**fields)

"""Accuracy control: what 8 bits hurt is found, named and taken back, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pocketlm.artifact import Artifact
from pocketlm.errors import RecipeError
from pocketlm.export.onnx import export
from pocketlm.models.load import Classifier
from pocketlm.quantize import control
from pocketlm.quantize.control import Judge, backed_off, parts_of, products_of
from pocketlm.quantize.int8 import QuantizeInt8, quantize
from pocketlm.stage import Context
from pocketlm.supervised import valid_score
from tests.tiny_models import MAX_LENGTH, SINGLE, classifier, prepared


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Artifact]:
    folder = tmp_path_factory.mktemp("student")
    made = classifier(layers=1)
    made.save(folder / "student")
    export(made, folder / "model.onnx")
    artifact = prepared(folder, SINGLE, train=24, valid=60).with_figures(max_length=MAX_LENGTH)
    return made, artifact.with_part("student", folder / "student").with_part("onnx", folder / "model.onnx")


def test_a_graph_is_judged_as_its_model_is(student: tuple[Classifier, Artifact]) -> None:
    from pocketlm.data.examples import load_split

    made, artifact = student
    valid = load_split(artifact.parts["data"], "valid")
    found = Judge.of(artifact).score(artifact.parts["onnx"])
    assert found == pytest.approx(valid_score(made, made.encode(valid.texts), valid))


class OneHurts(Judge):
    """A judge in whose eyes one product must not be quantized."""

    def score(self, graph: Path) -> float:
        return 0.5 if self.is_hurt(graph) else 0.9

    def logits(self, graph: Path, most: int | None = None) -> Any:
        return np.array([1.0 if self.is_hurt(graph) else 0.0])

    def is_hurt(self, graph: Path) -> bool:
        left = {node.name for node in onnx.load(graph).graph.node}
        return not left & {"hurt", "hurt_MatMul"}


@pytest.fixture
def named(student: tuple[Classifier, Artifact], tmp_path: Path) -> tuple[Path, list[str]]:
    model = onnx.load(student[1].parts["onnx"])
    products = products_of(model)
    for node in model.graph.node:
        if node.name == products[-2]:
            node.name = "hurt"
    products[-2] = "hurt"
    onnx.save(model, tmp_path / "named.onnx")
    return tmp_path / "named.onnx", products


def test_the_product_that_hurts_goes_back_alone(
    student: tuple[Classifier, Artifact], named: tuple[Path, list[str]], tmp_path: Path
) -> None:
    source, products = named
    assert len(set(products)) == len(products) == 7

    def make(path: Path, floats: Sequence[str]) -> None:
        quantize(source, path, floats=floats)

    target = tmp_path / "model.onnx"
    found = backed_off(source, target, make, products, OneHurts.of(student[1]), 0.1)
    assert (found.floats, found.score, found.score_float) == (["hurt"], 0.9, 0.9)
    kinds = [node.op_type for node in onnx.load(target).graph.node]
    assert (kinds.count("MatMulInteger"), kinds.count("MatMul")) == (6, 1)
    generous = backed_off(source, target, make, products, OneHurts.of(student[1]), 0.4)
    assert (generous.floats, generous.score) == ([], 0.5)


class StoringHurtsToo(OneHurts):
    def is_hurt(self, graph: Path) -> bool:
        return graph.name == "stored.onnx" or super().is_hurt(graph)


class EightBitsHurtToo(OneHurts):
    def is_hurt(self, graph: Path) -> bool:
        halves = [tensor for tensor in onnx.load(graph).graph.initializer if tensor.name.endswith("_half")]
        return (graph.name == "stored.onnx" and not halves) or super().is_hurt(graph)


@pytest.mark.parametrize(("judge", "bits"), [(OneHurts, 8), (EightBitsHurtToo, 16), (StoringHurtsToo, 32)])
def test_what_went_back_is_stored_in_as_few_bits_as_do_not_hurt(
    student: tuple[Classifier, Artifact],
    named: tuple[Path, list[str]],
    tmp_path: Path,
    judge: type[OneHurts],
    bits: int,
) -> None:
    source, products = named
    folder = tmp_path / "made"
    folder.mkdir()

    def make(path: Path, floats: Sequence[str]) -> None:
        quantize(source, path, floats=floats)

    found = backed_off(source, folder / "model.onnx", make, products, judge.of(student[1]), 0.1)
    assert (found.floats, found.floats_stored, found.score) == (["hurt"], bits, 0.9)
    (file,) = folder.iterdir()
    graph = onnx.load(file).graph
    weight = next(node.input[1] for node in graph.node if node.name == "hurt")
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kind = {8: onnx.TensorProto.INT8, 16: onnx.TensorProto.FLOAT16, 32: onnx.TensorProto.FLOAT}[bits]
    suffixes = ("_codes", "_half", "")
    assert [stored.get(f"{weight}{suffix}") for suffix in suffixes if f"{weight}{suffix}" in stored] == [kind]


def test_the_stage_tells_both_scores_and_what_it_kept(
    student: tuple[Classifier, Artifact], tmp_path: Path
) -> None:
    _, artifact = student
    done = QuantizeInt8(tolerance=1.0, compute="int8")(artifact, Context(tmp_path, tmp_path))
    told = done.figures["quantization"]
    assert told["floats"] == [] and told["score_float"] == Judge.of(artifact).score(artifact.parts["onnx"])
    assert told["score"] == Judge.of(artifact).score(done.parts["onnx"])
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    with pytest.raises(RecipeError, match=r"tolerance=-0\.1 is out of range"):
        QuantizeInt8(tolerance=-0.1)


class TableHurts(Judge):
    """A judge in whose eyes the table of words must not be quantized."""

    def score(self, graph: Path) -> float:
        return float(self.logits(graph)[0])

    def logits(self, graph: Path, most: int | None = None) -> Any:
        names = [tensor.name for tensor in onnx.load(graph).graph.initializer]
        floats = ("word_embeddings.weight", "word_embeddings.weight_half")
        return np.array([0.9 if any(name.endswith(floats) for name in names) else 0.5])


def test_a_table_that_hurts_goes_back_alone(student: tuple[Classifier, Artifact], tmp_path: Path) -> None:
    model = onnx.load(student[1].parts["onnx"])
    parts, source, target = parts_of(model), tmp_path / "named.onnx", tmp_path / "model.onnx"
    onnx.save(model, source)
    (table,) = [part for part in parts if part.endswith("word_embeddings.weight")]

    def make(path: Path, floats: Sequence[str]) -> None:
        quantize(source, path, floats=floats)

    found = backed_off(source, target, make, parts, TableHurts.of(student[1]), 0.1)
    assert (found.floats, found.score) == ([table], 0.9)
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(target).graph.initializer}
    whole = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}[table]
    assert table not in kept and np.array_equal(kept[f"{table}_half"], whole.astype(np.float16))
    assert not {node.op_type for node in onnx.load(target).graph.node if node.name in parts} & {"MatMul"}
    done = QuantizeInt8(keep=(table,), compute="int8")(student[1], Context(tmp_path, tmp_path))
    assert table in {tensor.name for tensor in onnx.load(done.parts["onnx"]).graph.initializer}


def test_only_what_a_stage_quantizes_may_go_back(
    student: tuple[Classifier, Artifact], tmp_path: Path
) -> None:
    def names(**which: bool) -> set[str]:
        return {*control.named(student[1], tmp_path, (), **which)[1]}

    products, tables = names(tables=False), names(products=False)
    assert len(products) == 7 and tables and not products & tables
    assert names() == products | tables and names(products=False, tables=False) == set()


def test_a_loss_that_no_part_causes_leaves_all_of_them_in_float(
    student: tuple[Classifier, Artifact], tmp_path: Path
) -> None:
    _, artifact = student

    class NeverContent(Judge):
        def score(self, graph: Path) -> float:
            return 0.9 if graph.name == "model.onnx" and "named" in str(graph) else 0.1

    model = onnx.load(artifact.parts["onnx"])
    parts = parts_of(model)
    source = tmp_path / "named" / "model.onnx"
    source.parent.mkdir()
    onnx.save(model, source)
    found = backed_off(
        source, tmp_path / "out.onnx", lambda path, floats: quantize(source, path, floats=floats), parts,
        NeverContent.of(artifact), 0.01,
    )  # fmt: skip
    assert sorted(found.floats) == sorted(parts)
    kinds = {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    assert "MatMulInteger" not in kinds and "MatMul" in kinds


def test_a_product_to_keep_stays_in_float(student: tuple[Classifier, Artifact], tmp_path: Path) -> None:
    _, artifact = student
    done = QuantizeInt8(keep=("encoder.layer.0.intermediate.dense",), compute="int8")(
        artifact, Context(tmp_path, tmp_path)
    )
    kinds = [node.op_type for node in onnx.load(done.parts["onnx"]).graph.node]
    assert (kinds.count("MatMul"), kinds.count("MatMulInteger")) == (1, 6)
    with pytest.raises(RecipeError, match=r"keep names no parts \['encoder.layer.9'\]; the graph has"):
        QuantizeInt8(keep=("encoder.layer.9",))(artifact, Context(tmp_path, tmp_path))

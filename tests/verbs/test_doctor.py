"""The doctor: a healthy pocket has no fault, and planted ones are named for what they are."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import pocketlm
from pocketlm.cli import main
from pocketlm.diagnose import speed
from pocketlm.diagnose.finding import Finding
from pocketlm.diagnose.speed import Times, of_times
from pocketlm.errors import InputError, PocketError
from pocketlm.export.pack import described_files
from pocketlm.verbs.doctor import Diagnosis, of_costs, quantizer_of
from tests.conftest import Made


@pytest.fixture(autouse=True)
def quick(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(made.cache))
    monkeypatch.setattr(speed, "ROUNDS", 5)
    monkeypatch.setattr(speed, "WARMUP", 1)


@pytest.fixture
def broken(made: Made, tmp_path: Path) -> Callable[[Callable[[Path], None]], Path]:
    """A copy of the pocket with a fault planted and its checksums right again."""

    def plant(fault: Callable[[Path], None]) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(made.pocket, folder)
        fault(folder)
        path = folder / "pocket.json"
        info = json.loads(path.read_text(encoding="utf-8"))
        info["files"] = described_files(folder)
        path.write_text(json.dumps(info), encoding="utf-8")
        return folder

    return plant


def faults(found: Diagnosis) -> list[Finding]:
    return [finding for finding in found.findings if finding.fault]


def change(folder: Path, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace one constant of a pocket's graph."""
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(how(numpy_helper.to_array(tensor)).copy(), name))
            break
    else:
        pytest.fail(f"{name} is none of {[tensor.name for tensor in model.graph.initializer]}")
    onnx.save(model, folder / "model.onnx")


def constant(folder: Path, like: str) -> str:
    names = [tensor.name for tensor in onnx.load(folder / "model.onnx").graph.initializer]
    return next(name for name in names if like in name)


def test_a_healthy_pocket_has_no_fault(made: Made) -> None:
    found = pocketlm.doctor(made.pocket)
    assert faults(found) == []
    assert found.scores["pocket"] and found.scores["teacher"]
    depth = made.info["shape"]["layers"]
    assert [layer.layer for layer in found.layers] == list(range(depth + 1))
    # The student's embeddings are cut out of the teacher's.
    assert found.layers[0].teacher == 0 and found.layers[0].cka > 0.7
    assert max(value.error for value in found.values) < 0.2
    assert all(one.error < 0.05 for one in found.maps)
    assert [cost for _, cost in found.costs] == sorted((cost for _, cost in found.costs), reverse=True)
    assert {name for name, _ in found.costs} >= {one.of for one in found.maps}
    assert 0 < found.times.tokenize_ms < found.times.text_ms
    assert sum(found.times.operators.values()) == pytest.approx(1)
    json.dumps(found.to_dict())


def test_a_healthy_pocket_of_numbers_has_no_fault(
    made_of_numbers: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(made_of_numbers.cache))
    assert faults(pocketlm.doctor(made_of_numbers.pocket)) == []


def test_labels_in_each_others_place_are_named(
    broken: Callable[[Callable[[Path], None]], Path],
) -> None:
    def fault(folder: Path) -> None:
        path = folder / "pocket.json"
        info = json.loads(path.read_text(encoding="utf-8"))
        labels = info["task"]["labels"]
        labels[0], labels[2] = labels[2], labels[0]
        path.write_text(json.dumps(info), encoding="utf-8")

    (finding,) = [one for one in faults(pocketlm.doctor(broken(fault))) if one.check == "labels"]
    assert "'Blame'" in finding.text and "'ça va'" in finding.text and "'praise'" not in finding.text
    assert "pocket" in finding.text


def test_a_saturated_layer_is_named_with_what_keeps_it_in_float(
    broken: Callable[[Callable[[Path], None]], Path],
) -> None:
    def fault(folder: Path) -> None:
        name = constant(folder, "scaled_dot_product_attention.weight_quantized")
        change(folder, name, lambda codes: np.clip(codes.astype(np.int32) * 6, -64, 64).astype(np.int8))
        change(folder, name.replace("_quantized", "_scale"), lambda scale: scale / 6)

    # What such a layer does to so small a pocket may also be named, as its score.
    found = [one for one in faults(pocketlm.doctor(broken(fault))) if one.check != "majority"]
    assert [finding.check for finding in found] == ["saturation"]
    assert found[0].patch == {"int8": {"keep": ["scaled_dot_product_attention"]}}


def test_weights_of_another_model_are_named(broken: Callable[[Callable[[Path], None]], Path]) -> None:
    def fault(folder: Path) -> None:
        name = constant(folder, "scaled_dot_product_attention.weight_quantized")
        change(folder, name, lambda codes: np.random.default_rng(0).permuted(codes, axis=0))

    found = [finding for finding in faults(pocketlm.doctor(broken(fault))) if finding.check == "graph"]
    assert len(found) == 1 and "scaled_dot_product_attention" in found[0].text


def test_pieces_of_another_vocabulary_are_named(
    broken: Callable[[Callable[[Path], None]], Path],
) -> None:
    def fault(folder: Path) -> None:
        path = folder / "tokenizer.json"
        spec = json.loads(path.read_text(encoding="utf-8"))
        words = [piece for piece in spec["model"]["vocab"] if not piece.startswith("[")]
        ids = [spec["model"]["vocab"][word] for word in words]
        random.Random(0).shuffle(ids)
        spec["model"]["vocab"].update(zip(words, ids, strict=True))
        path.write_text(json.dumps(spec), encoding="utf-8")

    checks = [finding.check for finding in faults(pocketlm.doctor(broken(fault)))]
    assert "vocabulary" in checks and "graph" not in checks and "saturation" not in checks


def test_a_larger_vocabulary_is_told_before_it_is_read_with(
    broken: Callable[[Callable[[Path], None]], Path],
) -> None:
    def fault(folder: Path) -> None:
        path = folder / "tokenizer.json"
        spec = json.loads(path.read_text(encoding="utf-8"))
        spec["model"]["vocab"]["novel"] = len(spec["model"]["vocab"])
        path.write_text(json.dumps(spec), encoding="utf-8")

    with pytest.raises(PocketError, match="pieces and the table of the model"):
        pocketlm.doctor(broken(fault))


def test_a_broken_position_offset_is_named(broken: Callable[[Callable[[Path], None]], Path]) -> None:
    def fault(folder: Path) -> None:
        def shift(positions: np.ndarray) -> np.ndarray:
            return np.minimum(positions + 1, positions.max())

        change(folder, constant(folder, "position_ids"), shift)

    found = [finding for finding in faults(pocketlm.doctor(broken(fault))) if finding.check == "graph"]
    assert len(found) == 1 and "position_embeddings" in found[0].text


def test_the_command_prints_and_tells_by_its_exit_code(
    made: Made, broken: Callable[[Callable[[Path], None]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(made.pocket)])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "alignment (CKA)" in shown and "its tokenizer" in shown and "fault" not in shown

    def fault(folder: Path) -> None:
        change(folder, constant(folder, "position_ids"), lambda positions: positions[:, ::-1])

    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(broken(fault)), "--json"])
    assert ended.value.code == 1
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["findings"][0]["fault"]


def test_other_labels_are_no_swap(made: Made, tmp_path: Path) -> None:
    other = tmp_path / "other.tsv"
    other.write_text("text\tlabel\n" + "a film\tgood\nthe film\tbad\n" * 20, encoding="utf-8")
    with pytest.raises(InputError, match="the data have the labels"):
        pocketlm.doctor(made.pocket, data=str(other))


def test_a_patch_is_of_the_stage_that_quantized(made: Made) -> None:
    assert quantizer_of(made.info) == "int8" == quantizer_of({})
    assert quantizer_of({"history": ["Prepare()", "WeightOnly(bits=4)", "Pack()"]}) == "weight_only"
    slow = Times(2.0, 1.0, 0.1, {"MatMul": 1.0})
    (finding,) = of_times(slow)
    assert finding.patch == {"int8": {"compute": "float32"}}
    (finding,) = of_times(slow, "static_int8")
    assert finding.patch is None and "int8 in the place of static_int8" in finding.text


def test_the_three_worst_products_get_a_patch() -> None:
    costs = [("a", 0.3), ("b", 0.02), ("c", 0.004), ("d", 0.003)]
    (finding,) = of_costs(costs, "static_int8")
    assert finding.patch == {"static_int8": {"keep": ["a", "b", "c"]}} and not finding.fault
    assert of_costs([("a", 1e-5)]) == []

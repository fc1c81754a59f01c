"""The verb `quantize`: a whole model with weights of fewer bits, and what cannot be quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pocketlm
from pocketlm.cli import main
from pocketlm.errors import InputError
from pocketlm.measure import compare
from pocketlm.runtime.manifest import read_info
from pocketlm.verbs.quantize import METHODS, quantize_model
from tests.conftest import Made, Tiny
from tests.easy import QUICK

# What the graph of each computes with.
OPERATORS = {
    "int8": {"MatMulInteger"},
    "static_int8": {"QuantizeLinear", "DequantizeLinear"},
    "weight_only": {"DequantizeLinear", "GatherBlockQuantized"},
    "gptq": {"DequantizeLinear", "GatherBlockQuantized"},
    "qat": {"DequantizeLinear", "GatherBlockQuantized"},
    "share": {"MatMul"},
}
TRAINED = {"qat": (("qat", "training", {"epochs": 1, "hidden": 0.0}),), "share": ()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them start with the same fine-tuned model."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def brief(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(cache))
    monkeypatch.setattr(compare, "REST_SECONDS", 0.0)
    for name in ("request_energy", "peak_ram_bytes", "start_ms"):
        monkeypatch.setattr(compare, name, lambda *_, **__: None)


def fields(method: str) -> tuple[Any, ...]:
    """Overrides that make a test quick, of those stages that the recipe has."""
    own = (("int8", "compute", "int8"),) if method == "int8" else ()
    return (*((stage, *rest) for stage, *rest in QUICK if stage in ("finetune", "measure")), *own,
            *TRAINED.get(method, ()))  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_model_is_quantized(tiny: Tiny, tmp_path: Path, method: str) -> None:
    folder = quantize_model(
        str(tiny.teacher), str(tiny.data), method=method, overrides=fields(method), out=tmp_path / method
    )
    info = read_info(folder)
    teacher, pocket = info["ledger"]["rows"]
    assert pocket["parameters"] > 0.95 * teacher["parameters"]  # but for positions that no text reaches
    assert pocket["size_bytes"] < 0.75 * teacher["size_bytes"]
    operators = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    assert OPERATORS[method] <= operators
    assert not any("controls were skipped" in told for told in info["ledger"]["verdicts"])
    assert pocketlm.load(folder).predict(["a good film"])[0].label in info["task"]["labels"]


def test_a_pocket_is_a_model_too(made: Made, tiny: Tiny, tmp_path: Path) -> None:
    folder = quantize_model(
        str(made.pocket), str(tiny.data), method="weight_only", overrides=fields("weight_only"),
        out=tmp_path / "less",
    )  # fmt: skip
    texts = ["a good film", "the bad night", "story"]
    wanted, got = (pocketlm.load(one).logits(texts) for one in (made.pocket, folder))
    assert np.corrcoef(wanted.ravel(), got.ravel())[0, 1] > 0.8


def test_the_command_prints_the_ledger(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = [
        text
        for stage, field, value in fields("weight_only")
        for text in ("--set", f"{stage}.{field}={json.dumps(value)}")
    ]
    with pytest.raises(SystemExit) as ended:
        main(["quantize", str(tiny.teacher), "--data", str(tiny.data), "--method", "weight_only", *sets])
    assert ended.value.code == 0
    folder = Path("quantized") / tiny.data.stem
    assert str(folder / "report.html") in capsys.readouterr().out and (folder / "model.onnx").exists()


def test_an_unknown_method_is_told_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"'int4' does not quantize; allowed: int8, static_int8, weight_only"
    ):
        quantize_model(method="int4")

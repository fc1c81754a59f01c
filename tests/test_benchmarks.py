"""The benchmarks' own code: what they write follows the schema of the results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketlm.quantize.stored import store_products
from pocketlm.runtime.pocket import load
from tests.conftest import Made
from tests.test_house import faults

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def trial(kind: str = "found", number: int = 0, weights: str = "rewound", seed: int = 0) -> dict[str, Any]:
    return {
        "kind": kind, "round": number, "weights": weights, "seed": seed, "sparsity": 0.1 * number,
        "valid": 0.8, "test": 0.7,
    }  # fmt: skip


STUDY: dict[str, Any] = {
    "teacher": "pypi:encoder", "plan": {"rounds": 2}, "minutes": 3.0,
    "tasks": {
        "critics": {
            "metric": "accuracy", "sparsities": [0.1, 0.2], "winning_round": 2,
            "trials": [
                *(trial(seed=seed) for seed in (0, 1)), trial(number=1), trial(number=2),
                trial("random", 2), trial("found", 2, "random"), trial("one-shot", 2),
            ],
        }
    },
    "transfer": [{**trial(number=2), "source": name, "target": "critics"} for name in ("critics", "mrpc")],
    "masked_lm": {"sparsities": [0.1, 0.2], "nats": [2.0, 2.1], "dense_nats": [2.0, 2.2], "winning_round": 1},
}  # fmt: skip


def test_a_study_of_tickets_becomes_lines_of_the_schema(bench) -> None:
    lines = bench("tickets").lines(STUDY)
    assert [faults(json.dumps(line)) for line in lines] == [[]] * len(lines)
    rows = [(line["row"], line["kind"]) for line in lines]
    assert rows == [
        ("dense", "teacher"), ("dense", "teacher"), ("ticket", "pocket"), ("ticket", "pocket"),
        ("random", "control"), ("ticket, random weights", "control"), ("one-shot", "control"),
        ("ticket of mrpc", "pocket"), ("masked LM, dense", "teacher"), ("masked LM, dense", "teacher"),
        ("masked LM ticket", "pocket"),
    ]  # fmt: skip
    assert [line["method"] for line in lines if "wins" in line["method"]] == [
        "round 2, the sparsest that wins", "round 1, the sparsest that wins",
    ]  # fmt: skip
    identities = [bench("tickets").identity(line) for line in lines]
    assert len(set(identities)) == len(identities)


def test_a_pocket_becomes_lines_of_the_schema(bench, made: Made) -> None:
    run, ledger = bench("run"), made.info["ledger"]
    case = run.Case("critics", (0,), "point-a")
    lines = [run.line("distill", case, 0, "0" * 64, made.info, row) for row in ledger["rows"]]
    assert [faults(json.dumps(line)) for line in lines] == [[]] * len(lines)
    teacher, pocket, *controls = lines
    assert (pocket["row"], pocket["quantization"]) == ("point-a", ledger["quantization"])
    assert pocket["quantization"]["bits"] == 8 and pocket["sparsity"] is None
    assert teacher["quantization"] is None and controls
    sparse = {**made.info, "ledger": {**ledger, "pruned": {"sparsity": 0.9}}}
    line = run.line("prune", case, 0, "0" * 64, sparse, ledger["rows"][1])
    assert (line["sparsity"], line["sparsity_of"]) == (0.9, "embeddings out")


def test_a_network_that_reads_images_becomes_a_line_of_the_schema(bench) -> None:
    line = {
        "row": "ticket", "kind": "pocket", "seed": 0, "sparsity": 0.964, "score": 0.9, "task": "mnist-5k",
        "method": "LeNet-300-100", "metric": "accuracy",
    }  # fmt: skip
    finished = bench("vision").finished("tickets", line)
    assert faults(json.dumps(finished)) == [] and finished["row"] == "tickets: ticket"


def test_every_case_of_every_bench_has_a_recipe_that_resolves(bench, tmp_path: Path) -> None:
    run = bench("run")
    from pocketlm.verbs.shrink import resolved_recipe

    seen: set[tuple[Any, ...]] = set()
    for cases in run.BENCHES.values():
        for case in cases:
            key = (case.row, case.recipe, case.less, tuple(map(str, case.overrides)))
            if key not in seen:
                seen.add(key)
                assert resolved_recipe(**run.sources_of(case, tmp_path), seed=0).stages
    assert len(seen) > 20


def test_a_compressed_network_is_the_same_after_its_file(bench, tmp_path: Path) -> None:
    compression = bench("deep_compression")
    model, like = compression.lenet_5(0), compression.lenet_5(1)
    with compression.sharing({"7.weight": (model[7], "weight"), "0.weight": (model[0], "weight")}, 4):
        pass
    with compression.sharing({name: (model[int(name[0])], "weight") for name in ("2.weight", "5.weight")}, 9):
        pass
    compression.write(tmp_path / "model.pocket", model)
    again = compression.read(tmp_path / "model.pocket", like)
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_pruned_decoder_becomes_a_line_of_the_schema(bench) -> None:
    found = {"perplexity": 40.0, "perplexity_before": 20.0, "sparsity": 0.5, "recipe_sha256": "0" * 64}
    lines = [
        line
        for method, whole in (("magnitude", True), ("wanda", False))
        for line in bench("decoders").lines(f"decoder: {method}", method, found, whole)
    ]
    assert [faults(json.dumps(line)) for line in lines] == [[]] * 3
    assert [(line["kind"], line["score"]) for line in lines] == [
        ("teacher", 20.0), ("control", 40.0), ("pocket", 40.0)
    ]  # fmt: skip


def test_the_floor_counts_products_with_stored_weights(bench, made: Made, tmp_path: Path) -> None:
    runtime, pocket = bench("runtime"), load(made.pocket, 1)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "map"], ["out"]),
    ]
    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "length", 64])],
        [numpy_helper.from_array(weights, name) for name in ("table", "map")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    texts, found = ["a good film", "night"], list[tuple[float, int]]()
    for name, change in (("float", lambda _: None), ("stored", store_products)):
        change(model)
        onnx.save(model, tmp_path / name)
        computed = runtime.opened(tmp_path / name)
        found.append((runtime.multiplications(computed, pocket, texts), runtime.weight_bytes(computed)))
    pieces = 2 * max(len(one) for one in pocket.encode(texts))
    assert found == [(pieces * 64 * 64, 4 * 64 * 64)] * 2

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from pocketlm.errors import PocketError
from pocketlm.measure import fresh
from pocketlm.measure.fresh import peak_ram_bytes, start_ms
from pocketlm.tasks.task import Task

EMBEDDING_BYTES = 48 * 2**20


def write_pocket(folder: Path) -> Path:
    """A pocket that is one table of 48 MB."""
    folder.mkdir()
    table = np.ones((EMBEDDING_BYTES // 4 // 64, 64), dtype=np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden", "one"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.ones((64, 2), dtype=np.float32), "head"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "film": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        name: {
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "size_bytes": (folder / name).stat().st_size,
        }
        for name in ("model.onnx", "tokenizer.json")
    }
    task = Task("classification", pair=True, labels=("no", "yes"))
    info = {"format": 1, "name": "table", "task": task.to_dict(), "max_length": 16, "files": files}
    (folder / "pocket.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from Linux's /proc")
def test_peak_ram_holds_the_model_and_not_the_parent(tmp_path: Path) -> None:
    folder = write_pocket(tmp_path / "big")
    ballast = np.ones(400 * 2**20, dtype=np.uint8)  # a parent that holds a teacher
    peak = peak_ram_bytes(folder, [("film", "fïlm \N{SNOWMAN}")], threads=1)
    assert ballast[-1] == 1
    assert peak is not None
    assert EMBEDDING_BYTES <= peak < 5 * EMBEDDING_BYTES


def test_peak_ram_is_none_where_the_system_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh, "PROC_STATUS", tmp_path / "absent")
    assert peak_ram_bytes(write_pocket(tmp_path / "big"), [("film", "film")]) is None


def test_peak_ram_of_a_broken_pocket_is_told(tmp_path: Path) -> None:
    with pytest.raises(PocketError, match="is not a pocket"):
        peak_ram_bytes(tmp_path, ["film"])


def test_the_first_answer_is_timed_from_the_first_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh, "STARTS", 1)
    folder = write_pocket(tmp_path / "small")
    took = start_ms(folder, ("film", "f\N{LATIN SMALL LETTER I WITH DIAERESIS}lm"), threads=1)
    assert 5 < took < 60_000
    with pytest.raises(PocketError, match="is not a folder"):
        start_ms(tmp_path / "absent", "film")

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pocketlm.artifact import Artifact
from pocketlm.export.pack import FORMAT, Pack, described_files, shipped_bytes
from pocketlm.models.load import Classifier
from pocketlm.runtime import load
from pocketlm.stage import Context
from tests.tiny_models import MAX_LENGTH, PAIR, examples_of, prepared

Get = Callable[[str], tuple[Classifier, Path]]


@pytest.fixture
def ready(tmp_path: Path, exported: Get) -> Artifact:
    made, path = exported("bert")
    made.save(tmp_path / "student")
    artifact = prepared(tmp_path, PAIR).with_part("student", tmp_path / "student").with_part("onnx", path)
    return artifact.with_figures(shape={"layers": 2}, parameters=1234)


def packed(ready: Artifact, folder: Path, half: bool = True) -> Artifact:
    return Pack(half=half)(ready, Context(folder / "stage", folder / "stage"))


def test_a_pocket_holds_what_ships_and_describes_it(tmp_path: Path, ready: Artifact) -> None:
    done = packed(ready, tmp_path)
    pocket = done.parts["pocket"]
    names = {path.name for path in pocket.iterdir()}
    assert names == {
        *("model.onnx", "tokenizer.json", "pocket.json"),
        *("model.safetensors", "config.json", "tokenizer_config.json"),
    }
    info = json.loads((pocket / "pocket.json").read_text(encoding="utf-8"))
    assert info["format"] == FORMAT
    assert info["name"] == "tiny"
    assert info["task"] == PAIR.to_dict()
    assert info["max_length"] == MAX_LENGTH
    assert (info["shape"], info["parameters"]) == ({"layers": 2}, 1234)
    assert set(info["files"]) == names - {"pocket.json"}
    for name, told in info["files"].items():
        content = (pocket / name).read_bytes()
        assert told == {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def test_the_size_is_that_of_graph_and_tokenizer(tmp_path: Path, ready: Artifact) -> None:
    done = packed(ready, tmp_path)
    pocket = done.parts["pocket"]
    size = sum((pocket / name).stat().st_size for name in ("model.onnx", "tokenizer.json"))
    assert done.figures["size_bytes"] == shipped_bytes(pocket) == size


def test_the_runtime_says_what_the_student_says(tmp_path: Path, ready: Artifact, exported: Get) -> None:
    made, _ = exported("bert")
    pocket = load(packed(ready, tmp_path).parts["pocket"])
    texts = examples_of(PAIR, 9).texts
    assert np.allclose(pocket.logits(texts), made.logits(made.encode(texts)), atol=2e-5)
    assert pocket.labels == PAIR.labels


@pytest.mark.parametrize(("half", "dtype"), [(True, torch.float16), (False, torch.float32)])
def test_weights_are_stored_as_asked_and_load_in_transformers(
    tmp_path: Path, ready: Artifact, exported: Get, half: bool, dtype: torch.dtype
) -> None:
    pocket = packed(ready, tmp_path, half).parts["pocket"]
    stored = load_file(pocket / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {dtype}
    original = load_file(ready.parts["student"] / "model.safetensors")
    assert stored.keys() == original.keys()
    for name, tensor in stored.items():
        assert torch.equal(tensor, original[name].to(dtype))
    made, _ = exported("bert")
    encoded = made.encode(examples_of(PAIR, 9).texts)
    again = Classifier.load(pocket, PAIR, MAX_LENGTH)
    assert {parameter.dtype for parameter in again.model.parameters()} == {torch.float32}
    assert np.allclose(again.logits(encoded), made.logits(encoded), atol=1e-5 if not half else 2e-2)
    plain = AutoModelForSequenceClassification.from_pretrained(pocket, dtype=torch.float32)
    inputs = made.inputs(encoded, [0, 1])
    with torch.no_grad():
        assert np.allclose(plain(**inputs).logits.numpy(), again.logits(encoded)[:2], atol=1e-5)
    assert AutoTokenizer.from_pretrained(pocket)("a film")["input_ids"] == made.tokenizer.encode("a film").ids


def test_an_earlier_half_made_pocket_is_swept_away(tmp_path: Path, ready: Artifact) -> None:
    stale = tmp_path / "stage" / "pocket"
    stale.mkdir(parents=True)
    (stale / "left-over.bin").write_bytes(b"old")
    pocket = packed(ready, tmp_path).parts["pocket"]
    assert pocket == stale
    assert not (pocket / "left-over.bin").exists()


def test_described_files_leave_out_the_description(tmp_path: Path) -> None:
    (tmp_path / "pocket.json").write_text("{}")
    (tmp_path / "b.bin").write_bytes(b"")
    (tmp_path / "a.bin").write_bytes(b"abc")
    assert list(described_files(tmp_path)) == ["a.bin", "b.bin"]
    assert described_files(tmp_path)["a.bin"] == {
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "size_bytes": 3,
    }

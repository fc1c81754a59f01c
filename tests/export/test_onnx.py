from __future__ import annotations

import copy
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from transformers.utils import logging as transformers_logging

from pocketlm.errors import PocketError
from pocketlm.export.onnx import OPSET, Export, export, fused_attention, largest_difference
from pocketlm.models.load import ATTENTION, Classifier, output_layer
from pocketlm.runtime.pocket import session
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from tests.tiny import KilledError
from tests.tiny_models import (
    ARCHITECTURES,
    JOINT,
    MAX_LENGTH,
    PAIR,
    TAGGED,
    Architecture,
    classifier,
    examples_of,
    prepared,
)

Get = Callable[[str], tuple[Classifier, Path]]
every_case = pytest.mark.parametrize("case", ARCHITECTURES)


def feed(
    made: Classifier, rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Inputs of ids given outright, padded."""
    encoded = made.encode([("a",) * (1 + made.task.pair)] * len(rows))
    encoded.ids[:] = [list(row) for row in rows]
    encoded.type_ids[:] = [list(row) for row in segments]
    return made.inputs(encoded, range(len(rows)))


def both(made: Classifier, path: Path, inputs: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        wanted = made.model(**inputs).logits.numpy()
    (got,) = session(path, None).run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    return got, wanted


@every_case
@pytest.mark.parametrize("batch", [1, 5])
def test_the_graph_says_what_torch_says_at_every_length(exported: Get, case: str, batch: int) -> None:
    made, path = exported(case)
    generator = np.random.default_rng(0)
    count = made.tokenizer.get_vocab_size()
    for length in range(1, MAX_LENGTH + 1):
        # The first row is full, the others are shorter: padding in all but a batch of one.
        lengths = [length, *generator.integers(1, length + 1, batch - 1)]
        rows = [generator.integers(5, count, size).tolist() for size in lengths]
        segments = [[int(2 * place >= size) for place in range(size)] for size in lengths]
        got, wanted = both(made, path, feed(made, rows, segments))
        assert got.shape == (batch, made.task.outputs) and got.dtype == np.float32
        assert np.allclose(got, wanted, atol=2e-5)


@every_case
def test_real_inputs_with_padding(exported: Get, case: str) -> None:
    made, path = exported(case)
    encoded = made.encode([*examples_of(made.task, 7).texts, ("",) * (1 + made.task.pair)])
    assert len(set(encoded.lengths)) > 1
    got, wanted = both(made, path, made.inputs(encoded, range(8)))
    assert np.allclose(got, wanted, atol=2e-5)
    alone = [both(made, path, made.inputs(encoded, [index]))[0][0] for index in range(8)]
    assert np.allclose(got, alone, atol=2e-5)


@every_case
def test_whatever_stands_in_the_padding_counts_for_nothing(exported: Get, case: str) -> None:
    made, path = exported(case)
    encoded = made.encode(
        [("a",) * (1 + made.task.pair), ("a quiet film of the plot",) * (1 + made.task.pair)]
    )
    inputs = made.inputs(encoded, [0, 1])
    before, _ = both(made, path, inputs)
    padding = inputs["attention_mask"] == 0
    assert padding.any()
    inputs["input_ids"] = torch.where(padding, torch.tensor(7), inputs["input_ids"])
    assert np.allclose(both(made, path, inputs)[0], before, atol=2e-5)


def test_segments_matter_where_they_are_given(exported: Get) -> None:
    for case in ("bert", "electra"):
        made, path = exported(case)
        inputs = made.inputs(made.encode([("quiet plot", "it")]), [0])
        before, _ = both(made, path, inputs)
        inputs["token_type_ids"] = 1 - inputs["token_type_ids"]
        after, wanted = both(made, path, inputs)
        assert not np.allclose(after, before, atol=1e-3)
        assert np.allclose(after, wanted, atol=2e-5)


@every_case
def test_inputs_are_dynamic_and_named_as_the_runtime_names_them(exported: Get, case: str) -> None:
    made, path = exported(case)
    run = session(path, None)
    names = [node.name for node in run.get_inputs()]
    segments = ["token_type_ids"] if case in ("bert", "electra") else []
    assert names == ["input_ids", "attention_mask", *segments]
    for node in run.get_inputs():
        assert len(node.shape) == 2 and all(isinstance(size, str) for size in node.shape)
    assert [node.name for node in run.get_outputs()] == ["logits"]
    assert run.get_outputs()[0].shape[1] == made.task.outputs


@every_case
def test_the_file_is_standard_and_alone(exported: Get, case: str) -> None:
    _, path = exported(case)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", OPSET)}
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


@every_case
def test_the_file_tells_nothing_of_the_machine_that_made_it(exported: Get, case: str) -> None:
    _, path = exported(case)
    content = path.read_bytes()
    for trace in (b"site-packages", b"stack_trace", b".py", str(Path.home()).encode() + b"/", b"modeling_"):
        assert trace not in content
    weights = sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)
    assert len(content) < weights + 60_000


@pytest.mark.parametrize(("case", "task"), [("mpnet", JOINT), ("deberta-v2", TAGGED)])
def test_models_that_know_no_fused_attention_answer_words_too(
    tmp_path: Path, case: Architecture, task: Task
) -> None:
    made, path = classifier(case, task, layers=1), tmp_path / "model.onnx"
    export(made, path)
    assert largest_difference(made, path, examples_of(task, 6).texts) < 1e-4


@every_case
def test_the_model_is_left_as_it_was(exported: Get, case: str) -> None:
    made, _ = exported(case)
    assert made.model.config._attn_implementation == ATTENTION
    assert not made.model.training


def test_attention_is_put_back_after_an_error() -> None:
    made = classifier(layers=1)
    with pytest.raises(RuntimeError), fused_attention(made.model):
        assert made.model.config._attn_implementation == "sdpa"
        raise RuntimeError
    assert made.model.config._attn_implementation == ATTENTION


def test_an_export_says_nothing_and_leaves_everything_as_loud_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def noisy(*_: object, **__: object) -> None:
        print("noise")
        logging.getLogger("noise").warning("noise")
        warnings.warn("noise", stacklevel=1)
        raise KilledError

    made = classifier("mpnet", layers=1)  # transformers warns of its attention
    transformers_logging.warning_once.cache_clear()
    theirs = logging.StreamHandler(sys.stdout)
    logging.getLogger("transformers").addHandler(theirs)
    monkeypatch.setattr(torch.onnx, "export", noisy)
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as warned, pytest.raises(KilledError):
        export(made, tmp_path / "model.onnx")
    logging.getLogger("transformers").removeHandler(theirs)
    told = capfd.readouterr()
    assert (told.out, told.err, warned) == ("", "", [])
    assert logging.root.manager.disable == logging.NOTSET
    assert made.model.config._attn_implementation == ATTENTION


def test_the_largest_difference_is_relative_to_the_largest_logit(exported: Get) -> None:
    made, path = exported("bert")
    texts = examples_of(PAIR, 9).texts
    assert largest_difference(made, path, texts) < 1e-4
    encoded = made.encode(texts)
    wanted = made.logits(encoded)
    other = copy.deepcopy(made)
    with torch.no_grad():
        output_layer(other.model).bias += torch.tensor([0.0, 5.0])
    got = largest_difference(other, path, texts)
    assert got == pytest.approx(5 / np.abs(wanted + np.array([0, 5])).max(), rel=1e-3)


def test_the_stage_writes_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Get) -> None:
    made, path = exported("bert")
    made.save(tmp_path / "student")
    artifact = prepared(tmp_path, PAIR).with_part("student", tmp_path / "student")
    (tmp_path / "stage").mkdir()
    monkeypatch.setattr("pocketlm.export.onnx.export", lambda _, target: shutil.copyfile(path, target))
    done = Export()(artifact, Context(tmp_path / "stage", tmp_path / "stage"))
    assert done.parts["onnx"] == tmp_path / "stage" / "model.onnx"
    assert done.figures["export"]["opset"] == OPSET
    assert 0 <= done.figures["export"]["largest_difference"] < 1e-4


@pytest.mark.parametrize(
    ("shift", "told"), [(9.0, r"differs from torch by [0-9.]+ of"), (np.nan, "by nan of")]
)
def test_a_graph_that_disagrees_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Get, shift: float, told: str
) -> None:
    made, path = exported("bert")
    artifact = prepared(tmp_path, PAIR)
    made.save(tmp_path / "student")
    real = session(path, None)

    def lying(*_: object) -> SimpleNamespace:
        return SimpleNamespace(
            get_inputs=real.get_inputs,
            run=lambda names, inputs: [logits + shift for logits in real.run(names, inputs)],
        )

    monkeypatch.setattr("pocketlm.export.onnx.session", lying)
    monkeypatch.setattr("pocketlm.export.onnx.export", lambda *_: None)
    with pytest.raises(PocketError, match=told + r".*more than 0\.001; please report this"):
        Export()(artifact.with_part("student", tmp_path / "student"), Context(tmp_path, tmp_path))

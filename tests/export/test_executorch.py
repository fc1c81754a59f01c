"""A pocket as an ExecuTorch program, run on the desktop runtime: see `make test-executorch`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketlm.errors import MissingExtraError
from pocketlm.export.executorch import export_executorch, program_inputs
from pocketlm.models.load import Classifier
from pocketlm.runtime.manifest import described, read_info
from pocketlm.verbs.export import export_model
from tests.conftest import Made
from tests.tiny_models import JOINT, PAIR, SINGLE, Architecture, classifier, examples_of

INSTALLED = importlib.util.find_spec("executorch") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="executorch is not installed: make test-executorch")


def forward(path: Path) -> Any:
    from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

    return Runtime.get().load_program(path).load_method("forward")


@needed
@pytest.mark.parametrize(
    ("architecture", "task"),
    [("bert", SINGLE), ("bert", PAIR), ("bert", JOINT), ("mpnet", SINGLE), ("distilbert", SINGLE)],
    ids=["bert", "bert-pair", "bert-joint", "mpnet", "distilbert"],
)
def test_the_program_says_what_torch_says(tmp_path: Path, architecture: Architecture, task: Any) -> None:
    made = classifier(architecture, task=task)
    assert export_executorch(made, tmp_path / "model.pte") < 1e-4
    method = forward(tmp_path / "model.pte")
    encoded = made.encode(examples_of(task, 12).texts)
    for row in range(12):
        inputs = made.inputs(encoded, [row])
        assert list(inputs) == program_inputs(made)
        with torch.no_grad():
            wanted = made.model(**inputs)
        got = method.execute(list(inputs.values()))
        names = [name for name in ("logits", "word_logits") if name in wanted]
        assert len(got) == len(names)
        for name, values in zip(names, got, strict=True):
            assert torch.allclose(values, wanted[name], atol=1e-4)


@needed
def test_the_verb_exports_a_pocket(made: Made, tmp_path: Path) -> None:
    path = export_model(str(made.pocket), "executorch", out=tmp_path / "pocket.pte")
    _, task, max_length = described(read_info(made.pocket))
    student = Classifier.load(made.pocket, task, max_length)
    inputs = student.inputs(student.encode([("a radiant film",)]), [0])
    with torch.no_grad():
        wanted = student.model(**inputs).logits
    assert torch.allclose(forward(path).execute(list(inputs.values()))[0], wanted, atol=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == ["pocket.pte"]


@pytest.mark.skipif(INSTALLED, reason="executorch is installed")
def test_without_executorch_the_extra_is_named_and_nothing_is_left(made: Made, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pocketlm\[executorch\]"):
        export_model(str(made.pocket), "executorch", out=tmp_path / "pocket.pte")
    assert not list(tmp_path.iterdir())

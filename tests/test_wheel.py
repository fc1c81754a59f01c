"""The promise of the base install: `pip install pocketlm` is small and brings no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Made

ROOT = Path(__file__).resolve().parent.parent
LARGEST_MB = 400
WORKSHOP = ("torch", "transformers", "accelerate", "sklearn", "onnx")


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Run outside the repository, so that only what is installed can be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel and its base dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", ROOT]
    run(build, folder)
    (wheel,) = (folder / "dist").glob("pocketlm-*.whl")
    run([sys.executable, "-m", "venv", folder / "venv"], folder)
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    run([*pip, wheel], folder)
    return folder


def python(bare: Path, code: str) -> str:
    """What a program prints in the bare environment."""
    return run([bare / "venv" / "bin" / "python", "-I", "-c", code], bare).strip()


def test_no_workshop_in_the_base_install(bare: Path) -> None:
    code = f"from importlib.util import find_spec; print([name for name in {WORKSHOP} if find_spec(name)])"
    assert python(bare, code) == "[]"


def test_the_types_are_shipped(bare: Path) -> None:
    code = "from importlib.resources import files; print((files('pocketlm') / 'py.typed').is_file())"
    assert python(bare, code) == "True"


def test_the_command_knows_its_version(bare: Path) -> None:
    installed = python(bare, "from importlib.metadata import version; print(version('pocketlm'))")
    assert installed in run([bare / "venv" / "bin" / "pocketlm", "--version"], bare)


@pytest.mark.parametrize("verb", ["shrink", "bench .", "recipe show"])
def test_a_verb_of_the_workshop_names_the_install_command(verb: str, bare: Path) -> None:
    command = [bare / "venv" / "bin" / "pocketlm", *verb.split()]
    done = subprocess.run(command, cwd=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: \w+ is not installed, .*pip install 'pocketlm\[compress\]'\n", done.stderr)


def test_the_base_install_is_small(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [path for path in (bare / "venv").rglob("*") if path.is_file() and not path.is_symlink()]
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    with capsys.disabled():
        print(f" base install: {size_mb:.0f} MB", end="")
    assert 10 < size_mb < LARGEST_MB


PREDICT = """
import json, sys
import pocketlm

texts, int8, exact = json.load(open(sys.argv[1]))
pockets = {"int8": pocketlm.load(int8), "exact": pocketlm.load(exact)}
answers = {name: pocket.logits(texts).tolist() for name, pocket in pockets.items()}
loaded = [name for name in ("torch", "transformers") if name in sys.modules]
print(json.dumps({**answers, "labels": [p.label for p in pockets["int8"].predict(texts)], "loaded": loaded}))
"""


def test_a_pocket_predicts_without_torch(bare: Path, made: Made, data_dir: Path, tmp_path: Path) -> None:
    """500 real texts: the pocket in the bare environment, and its graph in float32, against torch."""
    from pocketlm.measure.compare import as_pocket
    from pocketlm.models.load import Classifier

    rows = (data_dir / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:501]
    texts = [row.split("\t")[0] for row in rows]
    artifact = made.artifact()
    student = Classifier.load(artifact.parts["student"], artifact.task, made.info["max_length"])
    wanted = student.logits(student.encode([(text,) for text in texts]))
    exact = as_pocket(student, tmp_path / "exact")
    order, program = tmp_path / "order.json", tmp_path / "predict.py"
    order.write_text(json.dumps([texts, str(made.pocket), str(exact)]), encoding="utf-8")
    program.write_text(PREDICT, encoding="utf-8")
    answer = json.loads(run([bare / "venv" / "bin" / "python", "-I", program, order], bare))
    assert answer["loaded"] == []
    assert len(answer["labels"]) == len(texts) == 500
    largest = np.abs(wanted).max()
    np.testing.assert_allclose(answer["exact"], wanted, atol=1e-3 * largest, rtol=0)
    assert np.abs(np.array(answer["int8"]) - wanted).mean() < 0.05 * largest
    labels = [artifact.task.labels[index] for index in wanted.argmax(axis=1)]
    agree = np.mean(np.array(answer["labels"]) == np.array(labels))
    assert agree >= 0.98

"""The promise of the base install: `pip install pocketlm` is small and brings no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

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


def test_the_base_install_is_small(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [path for path in (bare / "venv").rglob("*") if path.is_file() and not path.is_symlink()]
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    with capsys.disabled():
        print(f" base install: {size_mb:.0f} MB", end="")
    assert 10 < size_mb < LARGEST_MB


@pytest.mark.skip(reason="to be completed: needs the pocket that a session fixture makes")
def test_a_pocket_predicts_without_torch(bare: Path, data_dir: Path) -> None:
    """500 real texts: `pocketlm.load(pocket)` in the bare environment equals the torch model."""
    raise NotImplementedError

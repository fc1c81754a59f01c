"""A tiny teacher, easy data and the pocket made of them; and a `pocketlm` that starts in no time."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pocketlm.artifact import Artifact
from tests.easy import QUICK, pair_rows, regression_rows, sentence_rows, write_teacher, write_tsv

ROOT = Path(__file__).resolve().parent.parent

# Threads that wait for each other in a spin make a tiny model twenty times slower on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Under pytest's log capture the exporter would trace every step it takes.
logging.getLogger("torch.__trace").disabled = True


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets (sst2, mrpc, stsb, …), which are not part of the repository."""
    folder = Path(os.environ.get("POCKETLM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; set POCKETLM_DATA to the folder that holds them")
    return folder


@dataclass(frozen=True)
class Tiny:
    """Where the tiny things lie.

    Args:
        teacher: A folder with a random encoder, without a head.
        data: A TSV of texts with three labels.
        pairs: A TSV of pairs with two labels.
        numbers: A TSV of pairs with a number.
    """

    teacher: Path
    data: Path
    pairs: Path
    numbers: Path


@dataclass(frozen=True)
class Made:
    """A run of `shrink`, to be read and not changed.

    Args:
        pocket: The pocket's folder.
        cache: The cache that the run filled.
    """

    pocket: Path
    cache: Path

    @property
    def info(self) -> dict[str, Any]:
        """The content of `pocket.json`."""
        return json.loads((self.pocket / "pocket.json").read_text(encoding="utf-8"))

    def artifacts(self) -> list[Artifact]:
        """What came out of every stage, in order; others that ran in this cache have another history."""
        found = [Artifact.load(path, self.cache) for path in (self.cache / "stages").glob("*/artifact.json")]
        told = tuple(self.info["history"])
        own = {len(one.history): one for one in found if one.history == told[: len(one.history)]}
        return [own[length] for length in sorted(own)]

    def artifact(self, stage: str = "Measure") -> Artifact:
        """What came out of a stage."""
        return next(one for one in self.artifacts() if one.history[-1].startswith(f"{stage}("))

    def part(self, name: str) -> Path:
        """A folder or file of the last artifact."""
        return self.artifact().parts[name]

    @property
    def exported(self) -> Path:
        """The graph in float32."""
        return self.artifact("Export").parts["onnx"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    return Tiny(
        write_teacher(folder / "teacher"),
        write_tsv(folder / "moods.tsv", sentence_rows()),
        write_tsv(folder / "replies.tsv", pair_rows()),
        write_tsv(folder / "degrees.tsv", regression_rows()),
    )


def make(
    folder: Path,
    teacher: Path,
    data: Path,
    energy_seconds: float = 0.0,
    more: tuple[tuple[str, str, Any], ...] = (),
) -> Made:
    """A pocket with everything measured but memory and, by default, energy."""
    from pocketlm import shrink
    from pocketlm.measure import compare
    from pocketlm.measure.energy import request_energy

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETLM_CACHE", str(folder / "cache"))
        patch.setattr(compare, "REST_SECONDS", 0.0)
        if energy_seconds:
            patch.setattr(compare, "request_energy", partial(request_energy, seconds=energy_seconds))
        else:
            patch.setattr(compare, "request_energy", lambda run, requests: None)
            patch.setattr(compare, "peak_ram_bytes", lambda folder, texts, threads: None)
            patch.setattr(compare, "start_ms", lambda folder, text, threads: None)
        pocket = shrink(str(teacher), str(data), overrides=(*QUICK, *more), out=folder / data.stem, threads=1)
    return Made(pocket, folder / "cache")


@pytest.fixture(scope="session")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The pocket of `tiny.data`, with everything measured, if briefly."""
    return make(tmp_path_factory.mktemp("made"), tiny.teacher, tiny.data, energy_seconds=0.3)


@pytest.fixture(scope="session")
def pocket_of_pairs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket that predicts, without figures."""
    from pocketlm.pipeline import run
    from pocketlm.verbs.shrink import resolved_recipe

    recipe = resolved_recipe(str(tiny.teacher), str(tiny.pairs), overrides=QUICK)
    artifact, _ = run(recipe, tmp_path_factory.mktemp("pairs"), until="pack")
    return artifact.parts["pocket"]


@pytest.fixture
def pocket_of_halves(made: Made, tmp_path: Path) -> Path:
    """The pocket of `made` with all weights in 16 bits, as accuracy control stores what few bits hurt."""
    import onnx

    from pocketlm.export.pack import Pack
    from pocketlm.quantize.control import parts_of
    from pocketlm.quantize.stored import store_halves
    from pocketlm.stage import Context

    model, folder = onnx.load(made.exported), tmp_path / "halves"
    store_halves(model, parts_of(model))
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    exported = made.artifact("Export").with_part("onnx", folder / "model.onnx")
    return Pack(coded=True)(exported, Context(folder, folder)).parts["pocket"]


@pytest.fixture(scope="session")
def made_of_numbers(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("numbers"), tiny.teacher, tiny.numbers)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (or minus the signal that killed it) and what it printed."""

    code: int
    changes: int
    stdout: str
    stderr: str


Forked = Callable[..., Ended]


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    """Run `pocketlm` in a process of its own; see `tests/forked.py`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, ROOT / "tests" / "forked.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as server:  # fmt: skip
        assert server.stdin is not None and server.stdout is not None

        def run(*arguments: str | Path, **order: Any) -> Ended:
            order = {"arguments": [str(argument) for argument in arguments], **order}
            server.stdin.write(json.dumps(order, default=str) + "\n")
            server.stdin.flush()
            return Ended(**json.loads(server.stdout.readline()))

        yield run
        server.stdin.close()

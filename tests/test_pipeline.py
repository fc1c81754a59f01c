"""The cache: a result is found again exactly when nothing that led to it has changed."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from pocketlm import pipeline
from pocketlm.artifact import Artifact
from pocketlm.data.prepare import Prepare
from pocketlm.errors import StorageError
from pocketlm.export.pack import Pack
from pocketlm.pipeline import cache_folder, code_digest, results_folder, run
from pocketlm.recipe import STAGE_NAMES, STAGES, DataSources, Recipe, parse, resolve
from pocketlm.stage import Context
from tests.conftest import ROOT, Made, Tiny

calls: list[str] = []


@dataclass(frozen=True)
class Step:
    """A stage that leaves a file and says that it ran."""

    name: str
    value: Any = 0

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        calls.append(self.name)
        if self.value == "fail":
            raise RuntimeError("as told")
        before = [path.read_text() for path in artifact.parts.values() if path.name == "words"]
        (context.folder / "words").write_text("".join(before[-1:]) + f" {self.name}={self.value}")
        return artifact.with_part("words", context.folder / "words").with_figures(
            **{self.name: [None, "ä", 1.5, self.value]}
        )


@dataclass(frozen=True)
class Timed(Step):
    timed = True


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    for kind in (Step, Timed):
        monkeypatch.setitem(STAGE_NAMES, kind, kind.__name__.lower())


def recipe_of(tiny: Tiny, *stages: Any, data: Path | None = None) -> Recipe:
    return Recipe(str(tiny.teacher), DataSources(str(data or tiny.data)), stages=stages)


def five(**changes: Any) -> list[Step]:
    return [Step(name, changes.get(name, 0)) for name in "abcde"]


# Hits


def test_a_second_run_runs_nothing_and_finds_the_same(tiny: Tiny, tmp_path: Path) -> None:
    first, costs = run(recipe_of(tiny, *five()), tmp_path)
    assert calls == list("abcde")
    again, costs_again = run(recipe_of(tiny, *five()), tmp_path)
    assert calls == list("abcde")
    assert (again, costs_again) == (first, costs)


def test_a_result_knows_when_it_was_last_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    run(recipe_of(tiny, Step("a")), tmp_path)
    (result,) = results_folder(tmp_path).iterdir()
    os.utime(result, (0, 0))
    run(recipe_of(tiny, Step("a")), tmp_path)
    assert calls == ["a"] and result.stat().st_mtime > 0


@pytest.mark.parametrize("changed", range(5))
def test_a_changed_field_reruns_its_stage_and_the_later_ones(
    tiny: Tiny, tmp_path: Path, changed: int
) -> None:
    run(recipe_of(tiny, *five()), tmp_path)
    calls.clear()
    artifact, _ = run(recipe_of(tiny, *five(**{"abcde"[changed]: 1})), tmp_path)
    assert calls == list("abcde"[changed:])
    assert artifact.parts["words"].read_text().split()[changed] == f"{'abcde'[changed]}=1"
    calls.clear()
    run(recipe_of(tiny, *five()), tmp_path)
    assert calls == []


def test_changed_bytes_of_data_or_teacher_rerun_everything(tiny: Tiny, tmp_path: Path) -> None:
    data = tmp_path / "moods.tsv"
    data.write_bytes(tiny.data.read_bytes())
    run(recipe_of(tiny, *five(), data=data), tmp_path / "cache")
    data.write_bytes(data.read_bytes() + b"a superb film\tpraise\n")
    calls.clear()
    run(recipe_of(tiny, *five(), data=data), tmp_path / "cache")
    assert calls == list("abcde")


def test_another_start_reruns_everything(tiny: Tiny, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, *five())
    artifact, _ = run(recipe, tmp_path / "cache")
    assert "start_source" not in artifact.parts
    calls.clear()
    started = dataclasses.replace(recipe, start=str(tiny.teacher))
    artifact, _ = run(started, tmp_path / "cache")
    assert calls == list("abcde")
    assert artifact.parts["start_source"] == artifact.parts["teacher_source"]
    assert artifact.figures["start_name"] == artifact.figures["teacher_name"]


def test_a_file_of_another_name_with_the_same_bytes_is_found(tiny: Tiny, tmp_path: Path) -> None:
    data = tmp_path / "other.tsv"
    data.write_bytes(tiny.data.read_bytes())
    run(recipe_of(tiny, *five()), tmp_path / "cache")
    calls.clear()
    artifact, _ = run(recipe_of(tiny, *five(), data=data), tmp_path / "cache")
    assert calls == []
    assert artifact.parts["train_source"] == data and artifact.figures["data_name"] == "other.tsv"


def test_data_that_moved_is_read_where_it_is_now(tiny: Tiny, tmp_path: Path) -> None:
    old, new = tmp_path / "old.tsv", tmp_path / "new.tsv"
    old.write_bytes(tiny.data.read_bytes())
    prepare = Prepare()
    run(recipe_of(tiny, Step("a"), data=old), tmp_path / "cache")
    old.rename(new)
    artifact, _ = run(recipe_of(tiny, Step("a"), prepare, data=new), tmp_path / "cache")
    assert calls == ["a"]
    assert sum(artifact.figures["rows"].values()) == 400


def test_only_a_timed_stage_belongs_to_threads_and_a_processor(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = (Step("a"), Timed("t"))
    run(recipe_of(tiny, *stages), tmp_path, threads=1)
    calls.clear()
    run(recipe_of(tiny, *stages), tmp_path, threads=2)
    assert calls == ["t"]
    calls.clear()
    monkeypatch.setattr(pipeline, "machine", lambda: {"cpu": "another", "isa": []})
    run(recipe_of(tiny, *stages), tmp_path, threads=2)
    assert calls == ["t"]


def test_a_stage_that_fails_is_run_again_and_those_before_are_not(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="as told"):
        run(recipe_of(tiny, *five(d="fail")), tmp_path)
    assert calls == list("abcd")
    calls.clear()
    with pytest.raises(RuntimeError, match="as told"):
        run(recipe_of(tiny, *five(d="fail")), tmp_path)
    assert calls == ["d"]


def test_until_stops_after_a_stage(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, costs = run(recipe_of(tiny, Step("a"), Timed("t"), Step("z")), tmp_path, until="timed")
    assert calls == ["a", "t"] and "z" not in artifact.figures and len(costs) == 2


def test_the_cache_may_move(tiny: Tiny, tmp_path: Path) -> None:
    run(recipe_of(tiny, *five()), tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    calls.clear()
    artifact, _ = run(recipe_of(tiny, *five()), tmp_path / "new")
    assert calls == []
    assert artifact.parts["words"].is_relative_to(tmp_path / "new")
    assert artifact.parts["words"].exists()


# What is kept


def test_figures_parts_and_history_survive(tiny: Tiny, tmp_path: Path) -> None:
    artifact, _ = run(recipe_of(tiny, *five(c={"x": [1, None]})), tmp_path)
    assert artifact.figures["c"] == [None, "ä", 1.5, {"x": [1, None]}]
    assert artifact.figures["teacher_name"] == "teacher" and artifact.figures["licence"] == "mit"
    assert artifact.history == tuple(repr(stage) for stage in five(c={"x": [1, None]}))
    assert artifact.parts["words"].read_text() == " a=0 b=0 c={'x': [1, None]} d=0 e=0"
    assert artifact.parts["train_source"] == tiny.data


def test_costs_are_recorded_once_a_stage(tiny: Tiny, tmp_path: Path) -> None:
    _, costs = run(recipe_of(tiny, *five()), tmp_path)
    assert [cost.stage for cost in costs] == ["step"] * 5
    assert all(cost.seconds >= 0 and cost.energy_method in ("rapl", "tdp", "none") for cost in costs)


def test_a_stage_costs_what_all_attempts_at_it_took(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny, Step("a"))

    def slow_then_killed(self: Step, artifact: Artifact, context: Context) -> Artifact:
        time.sleep(0.5)
        # What a kill that nothing can catch would find.
        (noted,) = tmp_path.glob("stages/*/spent.json")
        assert json.loads(noted.read_text())[0] > 0.2
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "SPENT_EVERY_SECONDS", 0.1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Step, "__call__", slow_then_killed)
        run(recipe, tmp_path)
    assert not [*tmp_path.glob("stages/*/cost.json")]
    _, (cost,) = run(recipe, tmp_path)
    assert cost.seconds > 0.5 and calls == ["a"]
    if cost.energy_method != "none":
        assert cost.energy_wh is not None and cost.gco2 is not None
    assert not [*tmp_path.glob("stages/*/spent.json")]


def test_the_stages_of_a_real_recipe_are_all_found_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a stage ran that is in the cache")

    for kind in STAGES.values():
        monkeypatch.setattr(kind, "__call__", refuse)
    files = sorted(made.cache.rglob("*"))
    times = {path: path.stat().st_mtime_ns for path in files if path.is_file()}
    recipe = resolve(parse(made.info["recipe"], "it"))
    artifact, costs = run(recipe, made.cache, threads=1)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert sorted(made.cache.rglob("*")) == files
    assert [cost.stage for cost in costs] == [STAGE_NAMES[type(stage)] for stage in recipe.stages]
    assert all(cost.seconds > 0 for cost in costs)
    bill = made.info["ledger"]["bill"]
    assert bill["make_seconds"] == pytest.approx(sum(cost.seconds for cost in costs))
    assert list(artifact.history) == made.info["history"]


def test_a_changed_field_of_a_real_stage_keeps_those_before(made: Made, tmp_path: Path) -> None:
    recipe = resolve(parse(made.info["recipe"], "it"))
    digests = [path.name for path in (made.cache / "stages").iterdir()]
    place = next(place for place, stage in enumerate(recipe.stages) if isinstance(stage, Pack))
    changed = dataclasses.replace(cast(Pack, recipe.stages[place]), half=False)
    other = dataclasses.replace(recipe, stages=(*recipe.stages[:place], changed))
    artifact, _ = run(other, made.cache, threads=1, until="pack")
    assert artifact.digest not in digests
    new = [path.name for path in (made.cache / "stages").iterdir() if path.name not in digests]
    assert new == [artifact.digest]


def test_a_cache_that_cannot_be_written_is_told(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, NotADirectoryError)):
        run(recipe_of(tiny, *five()), tmp_path / "file" / "cache")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", "~/somewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "somewhere"
    monkeypatch.delenv("POCKETLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "pocketlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "pocketlm"


# Code

Package = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Write modules below `pocketlm` and give the digest of the first."""
    import pocketlm

    monkeypatch.setattr(pocketlm, "__path__", [*pocketlm.__path__, str(tmp_path)])

    def digest(**sources: str) -> str:
        for name, source in sources.items():
            path = tmp_path.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
        importlib.invalidate_caches()
        code_digest.cache_clear()
        return code_digest("pocketlm." + next(iter(sources)).replace("__", "."))

    yield digest
    code_digest.cache_clear()
    for name in [name for name in sys.modules if name.startswith("pocketlm.zz")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "statement",
    [
        "from pocketlm.zz_b import thing",
        "import pocketlm.zz_b",
        "from pocketlm import zz_b",
        "if True:\n    from pocketlm.zz_b import thing as other",
        "def later():\n    from pocketlm.zz_b import thing",
    ],
)
def test_the_digest_follows_imports_however_deep(package: Package, statement: str) -> None:
    deep = "from pocketlm.zz_c import other"
    first = package(zz_a=statement, zz_b=deep, zz_c="other = 1")
    assert package(zz_a=statement, zz_b=deep, zz_c="other = 1") == first
    assert package(zz_a=statement + "\nx = 1", zz_b=deep, zz_c="other = 1") != first
    assert package(zz_a=statement, zz_b=deep + "\nx = 1", zz_c="other = 1") != first
    assert package(zz_a=statement + "\n", zz_b=deep + "  # more", zz_c="other  =  1") == first
    assert package(zz_a=statement, zz_b=deep, zz_c="other = 2") != first


def test_the_digest_survives_circles_and_ignores_what_is_not_imported(package: Package) -> None:
    sources = {"zz_a": "from pocketlm import zz_b", "zz_b": "import pocketlm.zz_a"}
    first = package(**sources)
    assert package(**sources, zz_other="x = 1") == first
    assert package(**sources, zz_other="x = 2") == first


def test_the_digest_of_a_stage_covers_what_it_is_made_of() -> None:
    """Every module of ours that is loaded with a stage's is one that its digest reads."""
    from pocketlm.distill import layers

    read: set[str] = set()
    real = pipeline._source_of
    pipeline_source = pipeline.__dict__
    pipeline_source["_source_of"] = lambda name: read.add(name) or real(name)
    try:
        code_digest.__wrapped__(layers.__name__)
    finally:
        pipeline_source["_source_of"] = real
    assert {"pocketlm.train", "pocketlm.data.batches", "pocketlm.tokenization.encode"} <= read


def test_no_module_imports_in_a_way_that_the_digest_would_miss() -> None:
    relative = re.compile(r"^\s*from\s+\.", re.MULTILINE)
    dynamic = re.compile(r"import_module\((?!\"(?!pocketlm))|__import__\(")
    allowed = {"__init__.py", "cli.py"}
    for path in (ROOT / "src" / "pocketlm").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not relative.search(source), path
        assert path.name in allowed or not dynamic.search(source), path


def test_a_changed_digest_reruns_the_stage(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe_of(tiny, *five()), tmp_path)
    calls.clear()
    monkeypatch.setattr(pipeline, "code_digest", lambda module: "another")
    run(recipe_of(tiny, *five()), tmp_path)
    assert calls == list("abcde")


# Artifacts


def test_an_artifact_reads_back_as_itself(tmp_path: Path) -> None:
    artifact = Artifact(
        "d",
        {"a": tmp_path / "x" / "y", "b": tmp_path.parent / "z"},
        {"n": None, "t": "\u2028é"},
        ("one", "two"),
    )
    artifact.save(tmp_path / "artifact.json", tmp_path)
    assert Artifact.load(tmp_path / "artifact.json", tmp_path) == artifact
    assert str(tmp_path) not in (tmp_path / "artifact.json").read_text()
    assert json.loads((tmp_path / "artifact.json").read_text())["parts"]["b"] == "../z"

"""Run a recipe's stages: each result is cached under the hash of all that led to it.

A stage's folder is `CACHE/stages/<digest>`; the artifact file in it is written last, so a stage is
done when that file is there. A run killed anywhere finds the stages before, done, and the killed
stage's own folder with its checkpoints.

Under `accelerate launch --multi_gpu --num_processes 2 -m pocketlm shrink …` (on CPUs too) every process
runs the training stages together; all else is done by the first process, and the others read its result.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import threading
import time
from collections.abc import Generator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from pocketlm.artifact import Artifact, write_json
from pocketlm.errors import storage_errors
from pocketlm.measure.energy import Meter
from pocketlm.measure.ledger import Cost
from pocketlm.measure.machine import machine
from pocketlm.progress import Progress, Quiet
from pocketlm.recipe import STAGE_NAMES, Recipe
from pocketlm.sources import Kind, resolve
from pocketlm.stage import Context, Stage

SPENT_EVERY_SECONDS = 20.0

LIBRARIES = ("torch", "transformers", "tokenizers", "onnxruntime", "numpy")


def cache_folder() -> Path:
    """`POCKETLM_CACHE`, or `pocketlm` in the user's cache folder."""
    given = os.environ.get("POCKETLM_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given).expanduser() if given else base / "pocketlm"


def results_folder(cache_dir: Path) -> Path:
    """Where a cache keeps the results of stages, a folder each."""
    return cache_dir / "stages"


def start(recipe: Recipe, cache_dir: Path, progress: Progress, kind: Kind = "model") -> Artifact:
    """Fetch what the recipe names, the teacher being of some kind; the digest covers every byte of it."""
    sources = {
        "teacher_source": resolve(recipe.teacher, kind, cache_dir, recipe.revision, progress),
        **{
            f"{split}_source": resolve(source, "data", cache_dir, progress=progress)
            for split, source in dataclasses.asdict(recipe.data).items()
            if source is not None
        },
    }
    if recipe.start is not None:
        sources["start_source"] = resolve(recipe.start, "model", cache_dir, progress=progress)
    start_figures = {
        f"start_{name}": getattr(sources["start_source"], name)
        for name in ("name", "licence")
        if recipe.start is not None
    }
    fingerprints = {name: source.fingerprint for name, source in sources.items()}
    versions = {library: metadata.version(library) for library in LIBRARIES}
    return Artifact(
        digest=_digest(json.dumps([fingerprints, versions], sort_keys=True)),
        parts={name: source.path.absolute() for name, source in sources.items()},
        figures={
            "teacher_name": sources["teacher_source"].name,
            "data_name": sources["train_source"].name,
            "licence": sources["teacher_source"].licence,
            "data_licence": sources["train_source"].licence,
            **start_figures,
        },
    )


def run(
    recipe: Recipe,
    cache_dir: Path,
    progress: Progress | None = None,
    threads: int = 2,
    until: str | None = None,
) -> tuple[Artifact, list[Cost]]:
    """Run the stages of a recipe, or find their results in the cache.

    Args:
        recipe: Resolved.
        cache_dir: Where stages keep their folders.
        progress: Shows how far it is.
        threads: CPU threads for measuring.
        until: Name of the last stage to run; None runs all.

    Returns:
        The last artifact, and what every stage cost when it ran.
    """
    progress = progress or Quiet()
    costs: list[Cost] = []
    with storage_errors(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        artifact = named = start(recipe, cache_dir, progress)
        names = [STAGE_NAMES[type(stage)] for stage in recipe.stages]
        stages = recipe.stages[: names.index(until) + 1 if until else None]
        with progress.task("stages", len(stages)) as advance:
            for stage in stages:
                artifact = step(stage, artifact, cache_dir, progress, threads)
                # The cache may have met the same bytes at another place, under another name.
                artifact = dataclasses.replace(
                    artifact,
                    parts={**artifact.parts, **named.parts},
                    figures={**artifact.figures, **named.figures},
                )
                costs.append(cost_of(artifact, cache_dir))
                advance(1)
    return artifact, costs


def step(stage: Stage, artifact: Artifact, cache_dir: Path, progress: Progress, threads: int = 2) -> Artifact:
    """The artifact after `stage`: from the cache, or by running it."""
    causes = [artifact.digest, repr(stage), code_digest(type(stage).__module__)]
    if getattr(stage, "timed", False):
        about = machine()
        causes.append(f"threads={threads}, {about['cpu']}, {about['isa']}")
    digest = _digest("\n".join(causes))
    folder = results_folder(cache_dir) / digest
    done = folder / "artifact.json"
    main = is_main_process()
    together = bool(getattr(stage, "distributed", False))
    if not done.exists() and (main or together):
        own = folder if main else folder / f"process-{os.environ['RANK']}"
        own.mkdir(parents=True, exist_ok=True)
        with _billed(own, STAGE_NAMES[type(stage)]):
            result = stage(artifact, Context(own, folder, progress if main else Quiet(), threads))
        if main:
            history = (*artifact.history, repr(stage))
            dataclasses.replace(result, digest=digest, history=history).save(done, cache_dir)
            (folder / "spent.json").unlink(missing_ok=True)
            for left in folder.glob("process-*"):
                shutil.rmtree(left)
    _wait_for_everyone()
    with contextlib.suppress(OSError):  # a cache that others share may be read-only
        os.utime(folder)  # when it was last asked for, see `pocketlm.verbs.cache`
    return Artifact.load(done, cache_dir)


@contextlib.contextmanager
def _billed(folder: Path, stage: str) -> Generator[None]:
    """Measure an attempt at a stage; `cost.json` appears when one succeeds, and has those before it, too.

    An attempt may be killed at any moment: `spent.json` says every few seconds what all have spent so far.
    """
    path, ended = folder / "spent.json", threading.Event()
    seconds, energy = json.loads(path.read_text()) if path.exists() else (0.0, 0.0)
    meter, began = Meter(), time.monotonic()

    def spent(own_wh: float | None) -> tuple[float, float | None]:
        both = None if energy is None or own_wh is None else energy + own_wh
        return seconds + time.monotonic() - began, both

    def note() -> None:
        with contextlib.suppress(OSError):  # a full disk is told by the stage itself
            write_json(path, spent(meter.so_far_wh()))

    def keep_noting() -> None:
        while not ended.wait(SPENT_EVERY_SECONDS):
            note()

    keeper = threading.Thread(target=keep_noting, daemon=True)
    with meter:
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            note()
    all_seconds, all_wh = spent(meter.energy_wh)
    # All attempts are on one grid.
    grams = meter.gco2 * all_wh / meter.energy_wh if meter.gco2 and meter.energy_wh and all_wh else meter.gco2
    cost = Cost(stage, all_seconds, all_wh, grams, meter.method)
    write_json(folder / "cost.json", dataclasses.asdict(cost))


def cost_of(artifact: Artifact, cache_dir: Path) -> Cost:
    """What the last stage of an artifact cost when it ran."""
    return cost_in(results_folder(cache_dir) / artifact.digest)


def cost_in(result: Path) -> Cost:
    """What the stage of a folder of `results_folder` cost when it ran."""
    return Cost(**json.loads((result / "cost.json").read_text(encoding="utf-8")))


def is_main_process() -> bool:
    """False in all but the first process of `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


def _wait_for_everyone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def code_digest(module: str) -> str:
    """Hash of a module and of every pocketlm module that it imports, however deep.

    Of what they do, that is: comments and layout are not in it.
    """
    trees: dict[str, ast.Module] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in trees:
            continue
        path = _source_of(name)
        if path is None:
            continue
        trees[name] = ast.parse(path.read_bytes())
        todo.extend(_imports(trees[name]))
    return _digest(json.dumps({name: _digest(ast.dump(trees[name])) for name in sorted(trees)}))


def _imports(tree: ast.Module) -> Sequence[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pocketlm"):
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("pocketlm")]
    return found


def _source_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None

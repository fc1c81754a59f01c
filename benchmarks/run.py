"""Measure what the README and the docs claim, and append it to `benchmarks/results/`.

    python benchmarks/run.py demo              the embedded demo, 3 seeds
    python benchmarks/run.py own-data          sst2, mrpc and stsb with the default recipe
    python benchmarks/run.py demo --seeds 0    one seed

A run that was stopped goes on where it was: stages come from pocketlm's own cache, and a row that is
already in the results under the same recipe, seed and commit is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketlm.measure.machine import commit
from pocketlm.progress import Bars
from pocketlm.recipe import Override
from pocketlm.runtime.manifest import read_info
from pocketlm.shrink import resolved_recipe, shrink
from pocketlm.sources import DEFAULT_TEACHER

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Case:
    """One row of a benchmark: what `shrink` is called with.

    Args:
        task: Name of the data set.
        seeds: One run each.
        data: Training data below the data folder; None is the embedded demo's.
        test: Test file below the data folder; None where `data` has its own.
        overrides: Fields of stages that differ from the default recipe.
    """

    task: str
    seeds: tuple[int, ...]
    data: str | None = None
    test: str | None = None
    overrides: tuple[Override, ...] = field(default=())


BENCHES: dict[str, tuple[Case, ...]] = {
    "demo": (Case("critics", (0, 1, 2)),),
    "own-data": (
        Case("sst2", (0,), "sst2/train.tsv", "sst2/dev.tsv", (("prepare", "train_rows", 10_000),)),
        Case("mrpc", (0,), "mrpc"),
        Case("stsb", (0,), "stsb"),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benches", nargs="+", choices=sorted(BENCHES))
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the benchmark's own")
    given = parser.parse_args(arguments)
    for bench in given.benches:
        for case in BENCHES[bench]:
            for seed in given.seeds or case.seeds:
                measure(bench, case, seed)


def measure(bench: str, case: Case, seed: int) -> None:
    """Shrink once and append a line for the teacher, the pocket and every control."""
    data = data_folder()
    sources: dict[str, Any] = {
        "teacher": DEFAULT_TEACHER if case.data else None,
        "data": str(data / case.data) if case.data else None,
        "test": str(data / case.test) if case.test else None,
        "overrides": case.overrides,
    }
    # One recipe over all seeds, so that a median over them is a median of one thing; and without the
    # place of the data, which is another on every machine.
    stages = resolved_recipe(**sources, seed=0).stages
    recipe = hashlib.sha256(repr(stages).encode()).hexdigest()
    path = RESULTS / f"{bench}.jsonl"
    if measured_already(path, case.task, seed, recipe):
        print(f"{bench}, {case.task}, seed {seed}: in {path.name} already")
        return
    with tempfile.TemporaryDirectory() as folder:
        pocket = read_info(shrink(**sources, seed=seed, out=Path(folder) / case.task, progress=Bars()))
    lines = [line(bench, case.task, seed, recipe, pocket, row) for row in pocket["ledger"]["rows"]]
    RESULTS.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(values, ensure_ascii=False) + "\n" for values in lines)


def line(
    bench: str, task: str, seed: int, recipe: str, pocket: Mapping[str, Any], row: Mapping[str, Any]
) -> dict[str, Any]:
    """One line of the results; figures that were not measured are null."""
    ledger = pocket["ledger"]
    teacher = ledger["rows"][0]
    is_pocket = row["kind"] == "pocket"
    ratios, bill = ledger["ratios"], ledger["bill"]
    size = row["size_bytes"]
    return {
        "bench": bench,
        "row": row["name"],
        "kind": row["kind"],
        "method": row["label"],
        "teacher": pocket["teacher"]["name"],
        "task": task,
        "split": ledger["split"],
        "metric": ledger["metric"],
        "seed": seed,
        "examples": ledger["examples"],
        "teacher_score": teacher["score"],
        "score": row["score"],
        "score_low": row["score_low"],
        "score_high": row["score_high"],
        "other_metrics": row["other_metrics"],
        "retention_pct": row["retention_pct"],
        "parameters": row["parameters"],
        "teacher_parameters": teacher["parameters"],
        "size_bytes": size,
        "teacher_size_bytes": teacher["size_bytes"],
        "smaller_x": teacher["size_bytes"] / size if size else None,
        "sparsity": None,
        "sparsity_of": None,
        "ram_bytes": row["ram_bytes"],
        "p50_ms": row["p50_ms"],
        "p95_ms": row["p95_ms"],
        "throughput_per_s": row["throughput_per_s"],
        "teacher_p50_ms": teacher["p50_ms"],
        "faster_x": ratios["faster_x"]["median"] if is_pocket else None,
        "faster_x_spread": [ratios["faster_x"]["low"], ratios["faster_x"]["high"]] if is_pocket else None,
        "faster_x_eager_torch": ratios["faster_x_eager_torch"]["median"] if is_pocket else None,
        "tokens_p50": ledger["tokens_p50"],
        "threads": ledger["threads"],
        "make_minutes": row["train_seconds"] / 60,
        "run_minutes": bill["make_seconds"] / 60,
        "energy_wh": row["energy_wh"],
        "energy_method": bill["energy_method"],
        "commit": ledger["commit"],
        "recipe_sha256": recipe,
        "machine": f"{ledger['machine']['cpu']}, {ledger['machine']['cores']} cores",
        "isa": ledger["machine"]["isa"],
        "versions": ledger["versions"],
        "when": ledger["when"],
    }


def measured_already(path: Path, task: str, seed: int, recipe: str) -> bool:
    """True where the results hold this row, made by this recipe at this commit."""
    if not path.exists():
        return False
    now = commit()
    wanted = (task, seed, recipe, now)
    rows = (json.loads(text) for text in path.read_text(encoding="utf-8").splitlines())
    return any((row["task"], row["seed"], row["recipe_sha256"], row["commit"]) == wanted for row in rows)


def data_folder() -> Path:
    """`POCKETLM_DATA`, or `../shared/data` beside the repository."""
    return Path(os.environ.get("POCKETLM_DATA", ROOT.parent / "shared" / "data"))


if __name__ == "__main__":
    sys.exit(main())

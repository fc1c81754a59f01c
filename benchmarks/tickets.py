"""Look for lottery tickets in MiniLM-L6 on six tasks and on plain text; append to `results/tickets.jsonl`.

    python benchmarks/tickets.py                          everything, some hours
    python benchmarks/tickets.py --tasks critics mrpc     these tasks, and tickets lent between them
    python benchmarks/tickets.py --tasks critics --no-corpus

A run that was stopped goes on where it was, and a training that is in the results is not added again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pocketlm.measure.machine import commit, machine, versions
from pocketlm.progress import Bars
from pocketlm.shrink import resolved_recipe
from pocketlm.tickets import MASKED_LM, Plan, described, tickets
from run import RESULTS, TEACHERS, Case, data_folder, sources_of

STUDIED = ("critics", "sst2", "mrpc", "stsb", "clinc150", "snips")
ROWS = 4000
CORPUS = "text/train.txt"
PLAN = Plan()
SPARSITY_OF = "layers and pooler, embeddings out"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a study and append its trainings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=STUDIED, default=STUDIED, metavar="TASK")
    parser.add_argument("--no-corpus", action="store_true", help="no tickets of masked language modelling")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        recipes = {task: recipe(task, Path(folder)) for task in given.tasks}
        corpus = None if given.no_corpus else str(data_folder() / CORPUS)
        study = described(tickets(recipes, PLAN, corpus=corpus, out=Path(folder) / "study", progress=Bars()))
    path = RESULTS / "tickets.jsonl"
    known = {identity(json.loads(text)) for text in path.read_text().splitlines()} if path.exists() else set()
    fresh = [line for line in lines(study) if identity(line) not in known]
    RESULTS.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(values, ensure_ascii=False) + "\n" for values in fresh)
    print(f"{len(fresh)} trainings added to {path.name}; all of them took {study['minutes']:.0f} minutes")


def recipe(task: str, folder: Path) -> Any:
    """Where a task's rows come from, at most `ROWS` of them to train on."""
    case = Case(task, (0,), overrides=(("prepare", "train_rows", ROWS),))
    sources = sources_of(case, folder)
    return resolved_recipe(**{**sources, "teacher": TEACHERS["minilm"]}, seed=0)


def lines(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for every training of a study."""
    shared = {
        "bench": "tickets",
        "teacher": study["teacher"],
        "split": "test",
        "sparsity_of": SPARSITY_OF,
        "recipe_sha256": hashlib.sha256(json.dumps(study["plan"]).encode()).hexdigest(),
        "commit": commit(),
        "machine": machine()["cpu"],
        "versions": versions(),
        "study_minutes": study["minutes"],
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    found: list[dict[str, Any]] = []
    for task, values in study["tasks"].items():
        dense = statistics.fmean(t["test"] for t in values["trials"] if not t["round"])
        own = [{**trial, "source": task} for trial in values["trials"]]
        lent = [t for t in study["transfer"] if t["target"] == task and t["source"] != task]
        for trial in [*own, *lent]:
            kind = "teacher" if not trial["round"] else "pocket" if trial["kind"] == "found" else "control"
            if trial["weights"] == "random":
                kind = "control"
            found.append({
                **shared, "row": row_of(trial, task), "kind": kind, "task": task, "metric": values["metric"],
                "seed": trial["seed"], "source": trial["source"], "round": trial["round"],
                "sparsity": trial["sparsity"], "valid_score": trial["valid"], "score": trial["test"],
                "teacher_score": dense, "retention_pct": 100 * trial["test"] / dense,
                "winning": trial["round"] == values["winning_round"] > 0,
            })  # fmt: skip
    if study["masked_lm"] is not None:
        values, shares = study["masked_lm"], [0.0, *study["masked_lm"]["sparsities"]]
        dense = values["dense_nats"]
        losses = [*enumerate(values["nats"]), *((0, nats) for nats in dense[1:])]
        found += [
            {
                **shared, "row": f"{MASKED_LM} ticket" if number else f"{MASKED_LM}, dense", "task": "text",
                "kind": "pocket" if number else "teacher", "split": "held out", "metric": "nats",
                "seed": max(0, place - len(values["nats"]) + 1), "source": "text", "round": number,
                "sparsity": shares[number], "valid_score": None, "score": nats,
                "teacher_score": statistics.fmean(dense), "retention_pct": None,
                "winning": number == values["winning_round"] > 0,
            }
            for place, (number, nats) in enumerate(losses)
        ]  # fmt: skip
    return found


def row_of(trial: Mapping[str, Any], task: str) -> str:
    """What a training is called."""
    if not trial["round"]:
        return "dense"
    if trial["source"] != task:
        return f"ticket of {trial['source']}"
    name = "ticket" if trial["kind"] == "found" else trial["kind"]
    return name if trial["weights"] == "rewound" else f"{name}, random weights"


def identity(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two lines the same training."""
    return tuple(line[name] for name in ("row", "task", "seed", "round", "recipe_sha256"))


if __name__ == "__main__":
    sys.exit(main())

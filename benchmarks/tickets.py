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
from pathlib import Path
from typing import Any

from pocketlm.progress import Bars
from pocketlm.recipe import Recipe
from pocketlm.verbs.shrink import resolved_recipe
from pocketlm.verbs.tickets import MASKED_LM, Plan, described, tickets
from run import Case, append, blank, data_folder, recorded, sources_of

STUDIED = ("critics", "sst2", "mrpc", "stsb", "clinc150", "snips")
ROWS = 4000
CORPUS = "text/train.txt"
PLAN = Plan()


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
        for task, own in recipes.items():  # what is known of one task is kept before the next one is begun
            add(tickets({task: own}, PLAN, out=Path(folder) / task, progress=Bars()))
        add(tickets(recipes, PLAN, corpus=corpus, out=Path(folder) / "all", progress=Bars()))


def add(folder: Path) -> None:
    """Append the trainings of a study that are not in the results yet."""
    study, known = described(folder), {identity(line) for line in recorded("tickets")}
    fresh = [line for line in lines(study) if identity(line) not in known]
    append("tickets", fresh)
    print(f"{len(fresh)} trainings added to tickets.jsonl; all of them took {study['minutes']:.0f} minutes")


def recipe(task: str, folder: Path) -> Recipe:
    """Where a task's rows come from, at most `ROWS` of them to train on."""
    case = Case(task, (0,), overrides=(("prepare", "train_rows", ROWS),))
    return resolved_recipe(**sources_of(case, folder), seed=0)


def lines(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for every training of a study."""
    shared = {
        **blank("tickets"),
        "teacher": study["teacher"],
        "sparsity_of": "embeddings out",
        "recipe_sha256": hashlib.sha256(json.dumps(study["plan"]).encode()).hexdigest(),
        "run_minutes": study["minutes"],
    }
    found: list[dict[str, Any]] = []
    for task, values in study["tasks"].items():
        dense = statistics.fmean(trial["test"] for trial in values["trials"] if not trial["round"])
        own = [{**trial, "source": task} for trial in values["trials"]]
        lent = [trial for trial in study["transfer"] if trial["target"] == task and trial["source"] != task]
        for trial in [*own, *lent]:
            is_ticket = trial["kind"] == "found" and trial["weights"] == "rewound"
            wins = is_ticket and trial["round"] == values["winning_round"] > 0 and trial["source"] == task
            found.append({
                **shared, "row": row_of(trial, task), "task": task, "metric": values["metric"],
                "kind": "teacher" if not trial["round"] else "pocket" if is_ticket else "control",
                "method": told(trial["round"], wins),
                "seed": trial["seed"], "sparsity": trial["sparsity"], "score": trial["test"],
                "teacher_score": dense, "retention_pct": 100 * trial["test"] / dense,
                "other_metrics": {"valid": trial["valid"]},
            })  # fmt: skip
    return [*found, *masked_lm_lines(study["masked_lm"], shared)]


def told(number: int, wins: bool) -> str:
    """Which round a ticket is of, and whether it is the one."""
    return f"round {number}{', the sparsest that wins' if wins else ''}"


def masked_lm_lines(found: Mapping[str, Any] | None, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for every training on plain text; its score is a loss, in nats."""
    if found is None:
        return []
    dense: list[float] = found["dense_nats"]
    losses = [(0, seed, nats) for seed, nats in enumerate(dense)]
    losses += [(number, 0, nats) for number, nats in enumerate(found["nats"]) if number]
    shares = [0.0, *found["sparsities"]]
    return [
        {
            **shared, "row": f"{MASKED_LM} ticket" if number else f"{MASKED_LM}, dense", "task": "text",
            "kind": "pocket" if number else "teacher", "split": "held out", "metric": "nats", "seed": seed,
            "method": told(number, number == found["winning_round"] > 0),
            "sparsity": shares[number], "score": nats, "teacher_score": statistics.fmean(dense),
        }
        for number, seed, nats in losses
    ]  # fmt: skip


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
    return tuple(line[name] for name in ("row", "task", "seed", "sparsity", "recipe_sha256"))


if __name__ == "__main__":
    sys.exit(main())

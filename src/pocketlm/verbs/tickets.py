"""`pocketlm tickets`: which part of a pre-trained encoder is enough to learn a task, or all of them.

Every training is a stage of its own in the cache, so that a study that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from pocketlm.artifact import Artifact, write_json
from pocketlm.errors import InputError, RecipeError, storage_errors
from pocketlm.finetune import FineTune
from pocketlm.folders import aside, check_output, description_in, replace_folder
from pocketlm.measure.ledger import Cost
from pocketlm.pipeline import cache_folder, cost_of, run, start, step
from pocketlm.progress import Progress, Quiet
from pocketlm.prune.lottery_ticket import (
    FindMaskedLmTickets,
    FindTickets,
    Origin,
    TryTicket,
    is_winning,
    masks_path,
)
from pocketlm.prune.masks import kept_by_part, load_masks
from pocketlm.recipe import DataSources, Override, Recipe
from pocketlm.report.tickets import write_tickets_report
from pocketlm.stage import Stage
from pocketlm.verbs.shrink import pocket_name, resolved_recipe

DESCRIPTION = "tickets.json"
MASKED_LM = "masked LM"
RANDOM_MASK: Mapping[str, Any] = {"kind": "random"}
CONTROLS: tuple[Mapping[str, Any], ...] = (
    RANDOM_MASK,
    {"kind": "found", "weights": "random"},
    {"kind": "one-shot"},
)
HOPELESS = 3.0
"""Deviations of the whole network by which the first seed of a ticket that may win is below it, at most."""


@dataclass(frozen=True)
class Plan:
    """How tickets are looked for and compared.

    Args:
        rounds: Of iterative pruning.
        share: Of the weights, removed in each round.
        of: The `original` weights, or those `remaining`.
        rewind_step: Training step to whose weights tickets are rewound; 0 are the pre-trained ones.
        epochs: Of every training.
        seeds: Trainings of a ticket that may be the sparsest to win, of one that is compared, and of a
            control; of any other ticket, and of one that is lent to another task, there is one.
        dense_seeds: Trainings of the whole network, whose deviation decides which ticket wins.
        compared: Sparsities at which a ticket is compared with random masks; the sparsest that wins is
            compared with all controls.
        transferred: Sparsity of the tickets that are tried on the other tasks.
    """

    rounds: int = 9
    share: float = 0.1
    of: Origin = "original"
    rewind_step: int = 0
    epochs: int = 3
    seeds: int = 3
    dense_seeds: int = 5
    compared: tuple[float, ...] = (0.5, 0.7)
    transferred: float = 0.7

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("dense_seeds", 2), ("epochs", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}={getattr(self, name)} is out of range; allowed: {least} or more")
        self.search(FineTune())  # rounds and shares out of range are told at once

    def search(self, training: FineTune) -> FindTickets:
        """The stage that finds a task's tickets."""
        return FindTickets(self.rounds, self.share, self.of, self.rewind_step, training)


def tickets(
    recipes: Mapping[str, Recipe],
    plan: Plan | None = None,
    *,
    corpus: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Find the tickets of an encoder on some tasks, compare them with their controls, and swap them.

    Args:
        recipes: Task names and where their data come from, see `pocketlm.verbs.shrink.resolved_recipe`; all
            of one teacher. Of their stages, `prepare` is run, and `finetune` says how long an input may be.
        plan: How they are looked for.
        corpus: Plain text, a text a line, on which the tickets of masked language modelling are found; None
            leaves them out.
        out: The study's folder; None is `tickets/NAME`, named after the tasks.
        overwrite: Replace another study.
        progress: Shows how far it is.

    Returns:
        The folder: `tickets.json`, `report.html`, and the masks of every task's best ticket.

    Raises:
        PocketlmError: see `pocketlm.errors`; nothing is left half-written.
    """
    plan, progress = plan or Plan(), progress or Quiet()
    teachers = {(recipe.teacher, recipe.revision) for recipe in recipes.values()}
    if len(teachers) != 1:
        raise InputError(
            f"the tasks have {len(teachers)} teachers; a ticket is a part of one, so name one teacher "
            "and at least one task"
        )
    folder = out or Path("tickets") / "-".join(recipes)
    identity = _identity(recipes, plan, corpus)
    check_output(folder, identity, overwrite, "study", described)
    study = _Study(plan, cache_folder(), progress)
    tasks = {name: study.task(recipe) for name, recipe in recipes.items()}
    general = study.masked_lm(next(iter(recipes.values())), corpus) if corpus else None
    transfer = study.transfer(tasks, general)
    values: dict[str, Any] = {
        "recipe_sha256": identity,
        "teacher": next(iter(teachers))[0],
        "plan": asdict(plan),
        "tasks": {name: task.figures for name, task in tasks.items()},
        "masked_lm": None if general is None else general.figures,
        "transfer": transfer,
        "minutes": sum(cost.seconds for cost in study.costs.values()) / 60,
    }
    with storage_errors(folder), aside(folder) as made:
        for name, task in tasks.items():
            best = task.figures["winning_round"]
            if best:
                path = masks_path(task.artifact.parts["tickets"] / "found", best)
                shutil.copyfile(path, made / f"{name}.safetensors")
        write_tickets_report(values, made / "report.html")
        write_json(made / DESCRIPTION, values)
        replace_folder(made, folder)
    return folder


def recipes_of(
    teacher: str | None,
    data: Sequence[str] | None,
    revision: str | None = None,
    train_rows: int | None = None,
    overrides: Sequence[Override] = (),
) -> dict[str, Recipe]:
    """The recipe of every task, under the name of its data; without data, the demo's.

    Raises:
        InputError: two tasks of one name.
        RecipeError: see `pocketlm.recipe.resolve`.
    """
    rows: tuple[Override, ...] = (("prepare", "train_rows", train_rows),)
    recipes: dict[str, Recipe] = {}
    for source in data or [None]:
        recipe = resolved_recipe(teacher, source, revision=revision, overrides=(*rows, *overrides))
        name = pocket_name(recipe)
        if name in recipes:
            raise InputError(f"two of the tasks are called {name}; rename the file or the folder of one")
        recipes[name] = recipe
    return recipes


def described(folder: Path) -> Mapping[str, Any]:
    """What a study's folder says of itself.

    Raises:
        PocketError: the folder is not one of `tickets`.
    """
    return description_in(folder, DESCRIPTION, "study of tickets")


@dataclass(frozen=True)
class _Found:
    """What was found on one task, or on plain text.

    Args:
        artifact: With the part `tickets`.
        figures: For `tickets.json`.
        training: How its networks are trained.
    """

    artifact: Artifact
    figures: dict[str, Any]
    training: FineTune | None = None


class _Study:
    """Runs the stages of a study and keeps what they cost."""

    def __init__(self, plan: Plan, cache_dir: Path, progress: Progress) -> None:
        self.plan, self.cache_dir, self.progress = plan, cache_dir, progress
        self.costs: dict[str, Cost] = {}

    def run(self, stage: Stage, artifact: Artifact) -> Artifact:
        result = step(stage, artifact, self.cache_dir, self.progress)
        self.costs[result.digest] = cost_of(result, self.cache_dir)
        return result

    def task(self, recipe: Recipe) -> _Found:
        """The tickets of one task, the whole network, and the controls."""
        plan = self.plan
        prepared, _ = run(recipe, self.cache_dir, self.progress, until="prepare")
        given = next(stage for stage in recipe.stages if isinstance(stage, FineTune))
        training = replace(given, mode="always", epochs=plan.epochs)
        found = self.run(plan.search(training), prepared)
        reached: list[float] = found.figures["sparsities"]
        whole = self.trials(TryTicket(training=training), found, plan.dense_seeds)
        dense = [trial["valid"] for trial in whole]
        winning, tried = self.sparsest(len(reached), training, found, dense)
        compared = {nearest(reached, sparsity) for sparsity in plan.compared}
        best = winning or max(compared)
        for number in sorted(compared | {best}):
            tried[number] = self.trials(TryTicket(round=number, training=training), found)
        trials = [*whole, *(trial for number in sorted(tried) for trial in tried[number])]
        for number in sorted(compared | {best}):
            for control in CONTROLS if number == best else (RANDOM_MASK,):
                trials += self.trials(TryTicket(round=number, training=training, **control), found)
        shown = load_masks(masks_path(found.parts["tickets"] / "found", best))
        network = training.fresh(prepared.parts["teacher_source"], prepared.task).model
        figures = {
            "metric": prepared.task.metric,
            "rows": prepared.figures["rows"],
            "sparsities": reached,
            "winning_round": winning,
            "kept": kept_by_part(network, shown),
            "trials": trials,
        }
        return _Found(found, figures, training)

    def sparsest(
        self, rounds: int, training: FineTune, found: Artifact, dense: Sequence[float]
    ) -> tuple[int, dict[int, list[dict[str, Any]]]]:
        """The last round whose ticket wins, or 0; and the trials of every round's ticket.

        From the sparsest on, until one wins. One whose first seed is hopeless has no other.
        """
        least = statistics.fmean(dense) - HOPELESS * statistics.stdev(dense)
        winning, tried = 0, dict[int, list[dict[str, Any]]]()
        for number in range(rounds, 0, -1):
            stage = TryTicket(round=number, training=training)
            tried[number] = self.trials(stage, found, 1)
            if not winning and tried[number][0]["valid"] >= least:
                tried[number] = self.trials(stage, found)
                winning = number if is_winning([one["valid"] for one in tried[number]], dense) else 0
        return winning, tried

    def trials(self, stage: TryTicket, artifact: Artifact, seeds: int | None = None) -> list[dict[str, Any]]:
        wanted = range(self.plan.seeds if seeds is None else seeds)
        return [self.trial(replace(stage, seed=seed), artifact) for seed in wanted]

    def trial(self, stage: TryTicket, artifact: Artifact) -> dict[str, Any]:
        """A trial; the search itself has trained every ticket once, and that is not done again."""
        known = (one for one in artifact.figures.get("searched", ()) if stage.name.items() <= one.items())
        return next(known, None) or self.run(stage, artifact).figures["trial"]

    def masked_lm(self, recipe: Recipe, corpus: str) -> _Found:
        """The tickets of masked language modelling; a round's loss is of the ticket of the round before."""
        plan = self.plan
        text = replace(recipe, data=DataSources(train=corpus, corpus=corpus))
        artifact = start(text, self.cache_dir, self.progress)
        stage = FindMaskedLmTickets(rounds=plan.rounds, share=plan.share, of=plan.of)
        found = self.run(stage, artifact)
        whole = [
            self.run(replace(stage, rounds=1, seed=seed), artifact).figures["masked_lm"][0]
            for seed in range(1, plan.dense_seeds)
        ]
        nats: list[float] = found.figures["masked_lm"]
        dense = [nats[0], *whole]
        wins = [
            number
            for number, loss in enumerate(nats)
            if number and is_winning([-loss], [-value for value in dense])
        ]
        figures = {
            "sparsities": found.figures["sparsities"],
            "nats": nats,
            "dense_nats": dense,
            "winning_round": max(wins, default=0),
        }
        return _Found(found, figures)

    def transfer(self, tasks: Mapping[str, _Found], general: _Found | None) -> list[dict[str, Any]]:
        """Every ticket on every task: with all seeds where it was found on plain text, else with one."""
        results: list[dict[str, Any]] = []
        sources = {**tasks, **({} if general is None else {MASKED_LM: general})}
        for name, source in sources.items():
            rounds = {nearest(source.figures["sparsities"], self.plan.transferred)}
            if source is general:
                rounds |= {source.figures["winning_round"]} - {0}
            for target, task in tasks.items():
                for number in sorted(rounds):
                    stage = TryTicket(round=number, training=cast(FineTune, task.training))
                    artifact = task.artifact if task is source else _lent(task, source.artifact)
                    tried = self.trials(stage, artifact, self.plan.seeds if source is general else 1)
                    results += [{"source": name, "target": target, **trial} for trial in tried]
        return results


def nearest(sparsity: Sequence[float], wanted: float) -> int:
    """The round, from 1, whose sparsity is nearest to the one that is wanted."""
    return 1 + min(range(len(sparsity)), key=lambda index: abs(sparsity[index] - wanted))


def _lent(task: _Found, found: Artifact) -> Artifact:
    """A task with the tickets of another; the weights of the step to rewind to are the task's own."""
    own = task.artifact.with_part("tickets", found.parts["tickets"]).with_figures(searched=[])
    return replace(own, digest=_hash([own.digest, found.digest]))


def _identity(recipes: Mapping[str, Recipe], plan: Plan, corpus: str | None) -> str:
    return _hash([{name: recipe.sha256 for name, recipe in recipes.items()}, asdict(plan), corpus])


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()

"""`pocketlm bench`: a pocket against its teacher, both sides in one run on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pocketlm.data.examples import Examples, load_split
from pocketlm.errors import InputError, TeacherError, storage_errors
from pocketlm.finetune import fitting_head, reordered
from pocketlm.measure.compare import Measure, compare
from pocketlm.measure.ledger import teacher_and_pocket
from pocketlm.models.load import Classifier, head_of, with_new_head
from pocketlm.pipeline import cache_folder, run
from pocketlm.progress import Progress, Quiet
from pocketlm.recipe import Override, Recipe, resolve
from pocketlm.runtime.pocket import Pocket, load, physical_cores
from pocketlm.sources import resolve as resolve_source
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from pocketlm.verbs.shrink import recipe_of


def bench(
    pocket: Path,
    against: str | None = None,
    *,
    revision: str | None = None,
    data: str | None = None,
    overrides: Sequence[Override] = (),
    rounds: int = 200,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Weigh and time a pocket and a teacher on real test inputs, in turn.

    Args:
        pocket: A pocket's folder.
        against: A folder, a Hub id or `pypi:…`; None takes the teacher that the pocket's recipe makes,
            from the cache where it is there. One without a head for the task is timed but not scored.
        revision: Of a Hub teacher.
        data: A file, all of whose rows are the test, or a folder or Hub data set with a test split; None
            takes the pocket's own.
        overrides: Fields of the recipe's stages to change, such as the columns of `data`.
        rounds: Single texts timed for each side.
        threads: CPU threads; None takes every physical core.
        progress: Shows how far it is.

    Returns:
        A ledger without controls; see `pocketlm.measure.ledger`.

    Raises:
        PocketlmError: see `pocketlm.errors`.
    """
    progress = progress or Quiet()
    both = both_sides(pocket, against, revision, data, overrides, "test", progress)
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as work:
        context = Context(Path(work), Path(work), progress, threads or physical_cores())
        measured = compare(
            both.teacher, both.folder, pocket, both.examples, Measure(rounds=rounds), context, both.scored
        )
    return teacher_and_pocket(measured, both.pocket.task, both.name, both.pocket.name)


@dataclass(frozen=True)
class BothSides:
    """A pocket and a teacher with examples of the pocket's task.

    Args:
        pocket: Opened.
        teacher: With its outputs in the task's order.
        folder: Where the teacher's files are.
        name: The teacher's.
        scored: False where the teacher has no head for the task.
        examples: Of one split.
    """

    pocket: Pocket
    teacher: Classifier
    folder: Path
    name: str
    scored: bool
    examples: Examples


def both_sides(
    pocket: Path,
    against: str | None,
    revision: str | None,
    data: str | None,
    overrides: Sequence[Override],
    split: str,
    progress: Progress,
) -> BothSides:
    """Find what a pocket is held against, on the split `valid` or `test`; see `bench` for the rest."""
    loaded = load(pocket)
    carried = recipe_of(pocket)
    if data is None:
        artifact, _ = run(resolve(carried, overrides), cache_folder(), progress, until="prepare")
    else:
        artifact, _ = run(_on_other_data(carried, data, overrides), cache_folder(), until="prepare")
    if artifact.task.pair != loaded.task.pair or artifact.task.kind != loaded.task.kind:
        raise InputError(
            f"the data are for {artifact.task}, but the pocket is for {loaded.task}; give data of its task"
        )
    examples, task = load_split(artifact.parts["data"], split), loaded.task
    if task.kind != "joint" and sorted(artifact.task.labels) != sorted(task.labels):
        raise InputError(
            f"the data have the labels {', '.join(artifact.task.labels)}, the pocket {', '.join(task.labels)}"
        )
    if task.labels != artifact.task.labels:
        examples = relabelled(examples, artifact.task, task)
    if against is None:
        made, _ = run(resolve(carried), cache_folder(), progress, until="finetune")
        folder, name = made.parts["teacher"], made.figures["teacher_name"]
        if task.labels == artifact.task.labels:
            teacher, scored = Classifier.load(folder, task, loaded.max_length), True
        else:  # its outputs are in the order of the data's labels
            teacher, scored = _given_teacher(folder, task, loaded.max_length, progress)
    else:
        source = resolve_source(against, "model", cache_folder(), revision, progress)
        folder, name = source.path, source.name
        teacher, scored = _given_teacher(folder, task, loaded.max_length, progress)
    return BothSides(loaded, teacher, folder, name, scored, examples)


def relabelled(test: Examples, theirs: Task, ours: Task) -> Examples:
    """Labels as the pocket counts them, an intent that it does not know as -1; tags go by name anyhow."""
    index = {name: place for place, name in enumerate(ours.labels)}
    places: list[int] = [index.get(name, -1) for name in theirs.labels]

    def place(label: Any) -> Any:
        if theirs.kind == "joint":
            intent: int = label["intent"]
            return {**cast(dict[str, Any], label), "intent": places[intent] if intent >= 0 else -1}
        if theirs.kind == "multilabel":
            return sorted(places[one] for one in cast(list[int], label))
        return places[cast(int, label)]

    return Examples(test.texts, [place(label) for label in test.labels])


def _on_other_data(carried: Mapping[str, Any], data: str, overrides: Sequence[Override]) -> Recipe:
    """A pocket's recipe with the test texts of `data`; where they come from matters to no cut."""
    whole = {"train": data, "valid": data, "test": data} if Path(data).is_file() else {"train": data}
    return resolve({**carried, "data": whole}, [("prepare", "group", None), *overrides])


def _given_teacher(folder: Path, task: Any, max_length: int, progress: Progress) -> tuple[Classifier, bool]:
    """A teacher with its outputs in the task's order, and whether it can be scored."""
    try:
        order = fitting_head(head_of(folder, task), task, "auto")
    except TeacherError as error:
        progress.say(f"not scored: {error}")
        order = None
    if order is None:
        return with_new_head(folder, task, max_length), False
    return reordered(Classifier.load(folder, task, max_length), order), True

"""`pocketlm shrink`: from a teacher and data to a small, measured model; `distill` stops at its weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pocketlm.artifact import Artifact, write_json
from pocketlm.errors import InputError, PocketError, RecipeError, storage_errors
from pocketlm.export.pack import described_files
from pocketlm.folders import aside, check_output, description_in, replace_folder
from pocketlm.measure.ledger import Cost, ledger
from pocketlm.pipeline import cache_folder, is_main_process, run
from pocketlm.progress import Progress, Quiet
from pocketlm.recipe import NEEDS_TEACHER_OUTPUTS, STAGE_NAMES, Override, Recipe, demo, parse, read, resolve
from pocketlm.report.card import card
from pocketlm.report.html import write_report
from pocketlm.runtime.manifest import read_info
from pocketlm.runtime.pocket import physical_cores
from pocketlm.sources import DEFAULT_TEACHER

DEMO_NAME = "critics"
TRAINING = "training.json"


def shrink(
    teacher: str | None = None,
    data: str | None = None,
    *,
    valid: str | None = None,
    test: str | None = None,
    unlabeled: str | None = None,
    revision: str | None = None,
    recipe: Path | None = None,
    overrides: Sequence[Override] = (),
    seed: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make a pocket; without a teacher and data, the embedded demo's.

    A run that was stopped anywhere goes on where it was when called again with the same arguments.

    Args:
        teacher: A folder, a Hub id or `pypi:…`; None takes the embedded one.
        data: A file, a folder with train/valid/test, or a Hub data set; None takes the embedded one.
        valid: A file with the valid split.
        test: A file with the test split.
        unlabeled: Texts without labels, which the teacher labels: a file with a text a line, or a table.
        revision: Of a Hub teacher.
        recipe: A YAML file, see `pocketlm.recipe`; the bare name of one in the package, such as `tinybert`;
            or a pocket, for the recipe it carries.
        overrides: Fields of stages to change: (stage, field, value).
        seed: Of everything random.
        out: The pocket's folder; None is `pockets/NAME`, named after the data.
        overwrite: Replace a pocket that another recipe made.
        threads: CPU threads for measuring; None takes every physical core.
        progress: Shows how far it is.

    Returns:
        The pocket's folder.

    Raises:
        PocketlmError: see `pocketlm.errors`; nothing is left half-written.
    """
    resolved = resolved_recipe(teacher, data, valid, test, revision, recipe, overrides, seed, unlabeled)
    folder = out or Path("pockets") / pocket_name(resolved)
    return make_pocket(resolved, folder, overwrite, threads, progress)


def make_pocket(
    recipe: Recipe, folder: Path, overwrite: bool, threads: int | None, progress: Progress | None
) -> Path:
    """Run a recipe to its end and write the pocket to `folder`; all else is as of `shrink`."""
    check_output(folder, recipe.sha256, overwrite, "pocket", read_info)
    artifact, costs = run(recipe, cache_folder(), progress or Quiet(), threads or physical_cores())
    if is_main_process():
        with storage_errors(folder):
            write_pocket(folder, artifact, costs, recipe)
    return folder


def distill_student(
    teacher: str | None = None,
    data: str | None = None,
    *,
    valid: str | None = None,
    test: str | None = None,
    unlabeled: str | None = None,
    revision: str | None = None,
    recipe: Path | None = None,
    overrides: Sequence[Override] = (),
    seed: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train the student of a recipe and stop there, with its score on valid; test is not looked at.

    The folder holds weights, config and tokenizer as transformers writes them, and `training.json`: scores
    and learning curve on valid, the history and the recipe. `shrink` with the same arguments goes on there.

    Args:
        teacher: As of `shrink`, like all that follow but `out`.
        data: See there.
        valid: See there.
        test: See there; it is set aside.
        unlabeled: See there.
        revision: See there.
        recipe: See there.
        overrides: See there.
        seed: See there.
        out: The student's folder; None is `students/NAME`, named after the data.
        overwrite: Replace a student that another recipe made.
        progress: Shows how far it is.

    Returns:
        The student's folder.

    Raises:
        PocketlmError: see `pocketlm.errors`; nothing is left half-written.
    """
    resolved = resolved_recipe(teacher, data, valid, test, revision, recipe, overrides, seed, unlabeled)
    return train_student(resolved, out or Path("students") / pocket_name(resolved), overwrite, progress)


def train_student(recipe: Recipe, folder: Path, overwrite: bool, progress: Progress | None) -> Path:
    """Run a recipe up to its student and write that to `folder`; all else is as of `distill_student`."""
    check_output(folder, recipe.sha256, overwrite, "student", training_of)
    stages = [STAGE_NAMES[type(stage)] for stage in recipe.stages]
    trained = stages[stages.index("export") - 1]
    if trained not in (*NEEDS_TEACHER_OUTPUTS, "calibrate"):
        raise RecipeError(
            f"the recipe's last stage before export is {trained}; add one that trains the student: "
            f"{', '.join(NEEDS_TEACHER_OUTPUTS)}"
        )
    artifact, _ = run(recipe, cache_folder(), progress or Quiet(), until=trained)
    if is_main_process():
        with storage_errors(folder):
            write_student(folder, artifact, recipe)
    return folder


def resolved_recipe(
    teacher: str | None = None,
    data: str | None = None,
    valid: str | None = None,
    test: str | None = None,
    revision: str | None = None,
    recipe: Path | None = None,
    overrides: Sequence[Override] = (),
    seed: int | None = None,
    unlabeled: str | None = None,
) -> Recipe:
    """The whole recipe that these arguments of `shrink` ask for.

    Raises:
        InputError: a teacher without data.
        RecipeError: see `pocketlm.recipe.resolve`.
    """
    given = {
        "teacher": teacher,
        "revision": revision,
        "seed": seed,
        "data": None
        if data is None
        else {"train": data, "valid": valid, "test": test, "unlabeled": unlabeled},
    }
    if data is None and (valid or test):
        raise InputError("a valid or test file was given, but no training data; name them with --data")
    values: dict[str, Any] = {}
    if recipe is not None:
        values |= recipe_of(recipe) if recipe.is_dir() else read(recipe)
    if teacher is None and data is None and not {"teacher", "data"} & values.keys():
        values = {**demo(), **values}
    values |= {name: value for name, value in given.items() if value is not None}
    if data is None and unlabeled is not None and values.get("data"):
        values["data"] = {**_sources_of(values["data"]), "unlabeled": unlabeled}
    if "data" not in values:
        raise InputError(
            f"the teacher {teacher or values['teacher']} was given, but no data; "
            "name a file or folder with --data"
        )
    return resolve({"teacher": DEFAULT_TEACHER, **values}, overrides)


def _sources_of(data: Any) -> dict[str, Any]:
    """A recipe's `data`, of which the file of the training rows alone is the short form."""
    return {**cast(Mapping[str, Any], data)} if isinstance(data, Mapping) else {"train": data}


def pocket_name(recipe: Recipe) -> str:
    """A folder name after the data, see `folder_name`; `critics` of the demo."""
    source = recipe.data.train
    return DEMO_NAME if source == demo()["data"]["train"] else folder_name(source)


def folder_name(source: str) -> str:
    """A name for a folder: `reviews` of `data/reviews.tsv.gz`."""
    last = re.split(r"[/\\]", source.split("#")[0].rstrip("/\\"))[-1]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last.split(".")[0]).strip("-") or "pocket"


def training_of(folder: Path) -> Mapping[str, Any]:
    """What `distill_student` wrote of a student's training.

    Raises:
        PocketError: the folder is not one of `distill_student`.
    """
    return description_in(folder, TRAINING, "student")


def write_student(folder: Path, artifact: Artifact, recipe: Recipe) -> None:
    """Write the student and what is known of its training, aside and then in one rename."""
    with aside(folder) as made:
        shutil.copytree(artifact.parts["student"], made, dirs_exist_ok=True)
        pruned = {"pruned": artifact.figures["pruned"]} if "pruned" in artifact.figures else {}
        training = {
            "metric": artifact.task.metric,
            "teacher_valid_score": artifact.figures["teacher"]["valid_score"],
            **artifact.figures["distil"],
            **pruned,
            "history": list(artifact.history),
            "recipe": recipe.to_yaml(),
            "recipe_sha256": recipe.sha256,
        }
        write_json(made / TRAINING, training)
        replace_folder(made, folder)


def write_pocket(folder: Path, artifact: Artifact, costs: Sequence[Cost], recipe: Recipe) -> None:
    """Write the pocket aside, then rename: it is whole or absent, and an older one stays till then."""
    with aside(folder) as made:
        for file in artifact.parts["pocket"].iterdir():
            shutil.copyfile(file, made / file.name)
        figures = artifact.figures
        started = {}
        if recipe.start is not None:
            about = {name: figures[f"start_{name}"] for name in ("name", "licence")}
            started = {"start": {"source": recipe.start, **about}}
        info: dict[str, Any] = {
            **read_info(made),
            "name": folder.name,
            "teacher": {
                "name": figures["teacher_name"],
                "source": recipe.teacher,
                "licence": figures["licence"],
            },
            **started,
            "data": {
                "source": recipe.data.train,
                "licence": figures["data_licence"],
                **{name: figures[name] for name in ("columns", "rows", "dropped", "overlap")},
            },
            "history": list(artifact.history),
            "recipe": recipe.to_yaml(),
            "recipe_sha256": recipe.sha256,
            "ledger": ledger(figures, costs, recipe.seed),
        }
        (made / "README.md").write_text(card(info), encoding="utf-8")
        write_report(info, made / "report.html")
        write_json(made / "pocket.json", {**info, "files": described_files(made)})
        replace_folder(made, folder)


def recipe_of(folder: Path) -> Mapping[str, Any]:
    """The recipe that a pocket carries.

    Raises:
        PocketError: the folder is not a pocket, or carries none.
    """
    text = read_info(folder).get("recipe")
    if not isinstance(text, str):
        raise PocketError(f"{folder} carries no recipe; make the pocket again with this version of pocketlm")
    return parse(text, f"the recipe of {folder}")

"""Measure what the README and the docs claim, and append it to `benchmarks/results/`.

    python benchmarks/run.py demo              the embedded demo, 3 seeds
    python benchmarks/run.py own-data          sst2, mrpc and stsb with the default recipe
    python benchmarks/run.py distill           every method on every task, from both teachers
    python benchmarks/run.py prune             structured pruning at several speeds, and at once
    python benchmarks/run.py quantize          the default pocket with weights of few bits, as files
    python benchmarks/run.py demo --seeds 0    one seed
    python benchmarks/run.py distill --rows point-a tinybert --tasks critics --teachers minilm

A run that was stopped goes on where it was: stages come from pocketlm's own cache, and a row that is
in the results already, made by the same recipe with the same seed, is not measured again (`--again` does).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pocketlm.measure.ledger import CHOSEN
from pocketlm.measure.machine import commit, machine, versions
from pocketlm.progress import Bars
from pocketlm.recipe import STAGES, Override, demo, packaged
from pocketlm.runtime.manifest import read_info
from pocketlm.sources import DEFAULT_DATA, DEFAULT_TEACHER, MPNET
from pocketlm.verbs.shrink import resolved_recipe, shrink

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# Controls that have the pieces or the shape of the row they stand beside.
OF_THE_STUDENT = ("no distillation", "static")
# What CLINC150 calls texts without an intent.
OUT_OF_SCOPE = "oos"
TEACHERS = {"minilm": DEFAULT_TEACHER, "mpnet": MPNET}
# Every student learns from the same teacher, and no seed is spent on another one.
ONE_TEACHER: tuple[Override, ...] = (("finetune", "seed", 0),)
# What fits the 20 minutes on two cores, without the teacher's, that ours may take, too. As published they
# take hours (TinyBERT: 20 times the texts, 20 epochs of stage 1) or days.
PAPERS: dict[str, tuple[Override, ...]] = {
    "tinybert": (
        ("augment", "most", 20_000), ("augment", "masked_lm_steps", 100), ("tinybert_general", "epochs", 1),
        ("tinybert", "epochs_intermediate", 3),
    ),
    "subwords": (
        ("augment", "operations", {"spans": 1, "crossover": 1, "mask": 1, "class": 1}),
        ("augment", "most", 20_000), ("subwords", "hidden_size", 48), ("subwords", "steps", 500),
    ),
    "distilbert": (),
    "relations": (),
}  # fmt: skip
NO_CONTROLS: tuple[Override, ...] = (("controls", "enabled", False),)


@dataclass(frozen=True)
class Task:
    """A data set, below the data folder.

    Args:
        data: Training data; None is the embedded demo's.
        test: Test file where `data` has none of its own.
        overrides: How it is read.
    """

    data: str | None = None
    test: str | None = None
    overrides: tuple[Override, ...] = ()


CRITICS = tuple(("prepare", name, value) for name, value in demo()["set"]["prepare"].items())
TASKS = {
    "critics": Task(overrides=CRITICS),
    "sst2": Task("sst2/train.tsv", "sst2/dev.tsv", (("prepare", "train_rows", 10_000),)),
    **{name: Task(name) for name in ("mrpc", "stsb", "clinc150", "snips", "atis")},
}


@dataclass(frozen=True)
class Case:
    """One row of a benchmark: what `shrink` is called with.

    Args:
        task: Of `TASKS`.
        seeds: One run each.
        row: What the student's line is called.
        kind: Of that line.
        recipe: One that comes with the package; None is the default.
        teacher: Of `TEACHERS`.
        overrides: Fields of stages that differ from the recipe.
        less: A stage that is left out of the recipe, with the overrides of its fields.
        more: Stages in addition to the recipe's, put where they belong.
        unlabeled: A file below the data folder whose texts the teacher labels, too.
    """

    task: str
    seeds: tuple[int, ...]
    row: str = "pocket"
    kind: str = "pocket"
    recipe: str | None = None
    teacher: str = "minilm"
    overrides: tuple[Override, ...] = ()
    less: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])
    unlabeled: str | None = None

    def recipe_in(self, folder: Path) -> Path | None:
        """The recipe as `shrink` takes it; one with other stages is written to `folder`."""
        if self.recipe is None or not (self.less or self.more):
            return Path(self.recipe) if self.recipe else None
        values = packaged(self.recipe)
        stages = [stage if isinstance(stage, dict) else {stage: {}} for stage in values["stages"]]
        stages = [stage for stage in stages if self.less not in stage]
        order = list(STAGES)
        for name, fields in self.more.items():
            later = {other for other in order[order.index(name) :] if other != "teacher_outputs"}
            place = next(place for place, stage in enumerate(stages) if later & {*stage})
            stages.insert(place, {name: dict(fields)})
        path = folder / f"{self.recipe}.yaml"
        path.write_text(json.dumps({**values, "stages": stages}))
        return path


def shaped(**fields: int | str) -> tuple[Override, ...]:
    """The default's student in another shape."""
    return tuple(("student", name, value) for name, value in fields.items())


def distill_cases() -> tuple[Case, ...]:
    """The two operating points on every task, and what they have to beat on three of them."""
    few = ("critics", "clinc150")
    compared = (*few, "mrpc")
    seeds: dict[str, tuple[int, ...]] = dict.fromkeys(few, (0, 1, 2))
    cases = [
        Case(task, seeds.get(task, (0,)), point, recipe=recipe, teacher=teacher, overrides=ONE_TEACHER)
        for teacher, tasks, points in (
            ("minilm", tuple(TASKS), (("point-a", "default"), ("point-b", "smaller"))),
            ("mpnet", few, (("point-a", "from-base"), ("point-b", "from-base-smaller"))),
        )
        for point, recipe in points
        for task in tasks
    ]
    given = (*ONE_TEACHER, *NO_CONTROLS)
    # No larger than the students of the papers, which the two points are not.
    tiny = shaped(layers=2, hidden_size=96, heads=4, intermediate_size=192, vocabulary=2800)
    wide = shaped(
        layers=4, hidden_size=384, heads=12, intermediate_size=1536, vocabulary=12_000,
        vocabulary_from="language",
    )  # fmt: skip
    cases += [
        Case(task, (0,), size, recipe=recipe, overrides=(*given, *shape))
        for size, recipe, shape in (("0.5 MB", "smaller", tiny), ("12 MB", "default", wide))
        for task in compared
    ]
    # What a voice assistant needs, in at most 5 MB: its 5.2 MB of 8 bits are fewer as one coded file.
    shape = (("assistant", "layers", 5), *shaped(layers=5, vocabulary=4000), ("pack", "coded", True))
    cases.append(
        Case("snips", (0,), "5 MB", recipe="from-base", teacher="mpnet", overrides=(*ONE_TEACHER, *shape))
    )
    # The 57,000 sentences and phrases of its train split that are not among the 10,000 with a label.
    raw = Case(
        "sst2", (0,), "point-a, raw text", recipe="default", overrides=given, unlabeled="sst2/train.tsv"
    )
    cases.append(raw)
    cases += [
        Case(task, (0,), name, "paper-recipe", name, overrides=(*given, *overrides))
        for name, overrides in PAPERS.items()
        for task in compared
    ]
    full = Case("critics", (0,), "", "control", "tinybert", overrides=(*given, *PAPERS["tinybert"]))
    cases += [
        *(
            replace(full, row=f"tinybert, no {term}", overrides=(*full.overrides, *zero(term)))
            for term in ("embedding", "hidden", "attention")
        ),
        # Without the prediction's distillation, the true labels are all that a head can learn from.
        replace(
            full,
            row="tinybert, no prediction",
            overrides=(*full.overrides, ("tinybert", "prediction", 0.0)),
            more={"distill": {"hidden": 0, "logits": 0, "labels": 1, "epochs": 3, "learning_rate": 3e-5}},
        ),
        replace(full, row="tinybert, no augmentation", less="augment"),
        replace(full, row="tinybert, no general distillation", less="tinybert_general"),
    ]
    return tuple(cases)


def zero(term: str) -> tuple[Override, ...]:
    """A term of TinyBERT's layers left out of both distillations."""
    return tuple((stage, term, 0.0) for stage in ("tinybert_general", "tinybert"))


def prune_cases() -> tuple[Case, ...]:
    """A curve of retention against speed for every task, with what one-shot pruning gets."""
    given = (*ONE_TEACHER, *NO_CONTROLS)

    def structured(task: str, speedup: float, teacher: str, learned: bool) -> Case:
        fields = (("structured", "speedup", speedup), ("structured", "learned", learned))
        name = f"structured {speedup:g}x" if learned else f"one-shot {speedup:g}x"
        kind, less = ("pocket", None) if learned else ("control", "distill")
        return Case(task, (0,), name, kind, "structured", teacher, (*given, *fields), less)

    speeds = (2.0, 3.0, 4.0, 6.0, 8.0)
    # Beside 8,000 pieces, positions and pooler there is room for one in twenty of the encoder's weights.
    smallest = structured("critics", 8.0, "mpnet", learned=True)
    # Point A's bytes, its shape not given but cut out of all six layers before the distillation.
    whole = shaped(layers=6, intermediate_size=1280)
    learned = Case(
        "", (0,), "point-a, structured", recipe="default", overrides=(*given, *whole),
        more={"structured": {"speedup": None, "max_size_mb": 4.2, "training": {"hidden": 0.0, "epochs": 1}}},
    )  # fmt: skip
    return (
        *(replace(learned, task=task) for task in ("critics", "clinc150", "mrpc")),
        structured("critics", 2.0, "mpnet", learned=True),
        replace(smallest, overrides=(*smallest.overrides, ("structured", "max_size_mb", 11.0))),
        *(
            structured(task, speedup, "minilm", learned)
            for task in TASKS
            for speedup in speeds
            for learned in (True, False)
        ),
    )


def quantize_cases() -> tuple[Case, ...]:
    """The default pocket with weights of every kind, and the smaller one with some, on every task.

    Most of them are one coded file.
    """
    given, coded = (*ONE_TEACHER, *NO_CONTROLS), ("pack", "coded", True)
    floats: tuple[Override, ...] = (("int8", "matmuls", False), ("int8", "embeddings", False))
    trained = {
        name: {"qat": {"weight_bits": bits, "embedding_bits": 4}}
        for name, bits in (("4 bits", 4), ("3 bits", 3), ("three values", 2))
    }
    cases = [
        Case("", (0,), "float32", overrides=floats),
        Case("", (0,), "8 bits"),
        *(
            Case("", (0,), f"8 bits, {name}", more={"static_int8": {"calibration": name}}, less="int8")
            for name in ("minmax", "percentile", "entropy")
        ),
        Case("", (0,), "4 bits", more={"weight_only": {}}, less="int8"),
        Case("", (0,), "4 bits, trained", more={**trained["4 bits"], "weight_only": {}}, less="int8"),
        Case("", (0,), "8 bits, coded", overrides=(coded,)),
        *(Case("", (0,), f"{name}, coded", overrides=(coded,), more=more) for name, more in trained.items()),
        # What the others gain by the training alone: 8 bits are as good as float32.
        Case("", (0,), "8 bits, trained, coded", overrides=(coded,),
             more={"qat": {"weight_bits": 8, "embedding_bits": 8}}),
        Case("", (0,), "4 bits by GPTQ, coded", overrides=(coded,), more={"gptq": {}}),
        # A row has too many values for a grid of 8 bits.
        Case("", (0,), "shared values, coded", overrides=(coded, floats[0]), more={"share": {}}),
    ]  # fmt: skip
    # What point B needs as it is, and in the least bytes.
    smaller = ("8 bits", "8 bits, coded", "4 bits, coded", "three values, coded")
    cases = [replace(case, recipe="default") for case in cases] + [
        replace(case, recipe="smaller", row=f"point-b, {case.row}") for case in cases if case.row in smaller
    ]
    return tuple(
        replace(case, task=task, overrides=(*given, *case.overrides)) for task in TASKS for case in cases
    )


BENCHES: dict[str, tuple[Case, ...]] = {
    "demo": (Case("critics", (0, 1, 2)),),
    "own-data": tuple(Case(task, (0,)) for task in ("sst2", "mrpc", "stsb")),
    "distill": distill_cases(),
    "prune": prune_cases(),
    "quantize": quantize_cases(),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benches", nargs="+", choices=sorted(BENCHES))
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the benchmark's own")
    for name in ("row", "task", "teacher"):
        known = sorted({getattr(case, name) for cases in BENCHES.values() for case in cases})
        parser.add_argument(f"--{name}s", nargs="+", choices=known, default=known, metavar=name.upper())
    parser.add_argument("--again", action="store_true", help="measure what is in the results already")
    given = parser.parse_args(arguments)
    for bench in given.benches:
        for case in BENCHES[bench]:
            if case.row in given.rows and case.task in given.tasks and case.teacher in given.teachers:
                for seed in given.seeds or case.seeds:
                    measure(bench, case, seed, given.again)


def measure(bench: str, case: Case, seed: int, again: bool = False) -> None:
    """Shrink once and append a line for the teacher, the student and every control."""
    with tempfile.TemporaryDirectory() as folder:
        sources = sources_of(case, Path(folder))
        # One recipe over all seeds, so that a median over them is a median of one thing; and without the
        # place of the data, which is another on every machine.
        resolved = resolved_recipe(**sources, seed=0)
        known = repr((resolved.teacher, resolved.start, resolved.stages))
        recipe = hashlib.sha256(known.encode()).hexdigest()
        if not again and measured_already(bench, case, seed, recipe):
            print(f"{bench}, {case.row}, {case.task}, seed {seed}: in {bench}.jsonl already")
            return
        pocket = read_info(shrink(**sources, seed=seed, out=Path(folder) / case.task, progress=Bars()))
    append(bench, [line(bench, case, seed, recipe, pocket, row) for row in pocket["ledger"]["rows"]])


def sources_of(case: Case, folder: Path) -> dict[str, Any]:
    """What `shrink` is called with, but for the seed; a recipe that is made up goes to `folder`."""
    task, data = TASKS[case.task], data_folder()
    return {
        "teacher": TEACHERS[case.teacher],
        "data": str(data / task.data) if task.data else DEFAULT_DATA,
        "test": str(data / task.test) if task.test else None,
        "unlabeled": str(data / case.unlabeled) if case.unlabeled else None,
        "recipe": case.recipe_in(folder),
        "overrides": (*task.overrides, *(one for one in case.overrides if one[0] != case.less)),
    }


def line(
    bench: str, case: Case, seed: int, recipe: str, pocket: Mapping[str, Any], row: Mapping[str, Any]
) -> dict[str, Any]:
    """One line of the results; figures that were not measured are null."""
    ledger = pocket["ledger"]
    teacher = ledger["rows"][0]
    is_pocket = row["kind"] == "pocket"
    apart = case.row != Case.row and row["name"] in OF_THE_STUDENT
    name = f"{case.row}, {row['name']}" if apart else row["name"]
    ratios, bill = ledger["ratios"], ledger["bill"]
    chosen = {name: ledger[name] if is_pocket else None for name in (*CHOSEN, "zeros")}
    pruned = chosen.pop("pruned")
    size = row["size_bytes"]
    return {
        "bench": bench,
        "row": case.row if is_pocket else name,
        "kind": case.kind if is_pocket else row["kind"],
        "method": row["label"],
        "teacher": pocket["teacher"]["name"],
        "task": case.task,
        "split": ledger["split"],
        "metric": ledger["metric"],
        "seed": seed,
        "examples": ledger["examples"],
        "teacher_score": teacher["score"],
        "score": row["score"],
        "score_low": row["score_low"],
        "score_high": row["score_high"],
        "other_metrics": {**(row["other_metrics"] or {}), **in_scope(ledger["confusion"], row["kind"])},
        "retention_pct": row["retention_pct"],
        "parameters": row["parameters"],
        "teacher_parameters": teacher["parameters"],
        "size_bytes": size,
        "teacher_size_bytes": teacher["size_bytes"],
        "smaller_x": teacher["size_bytes"] / size if size else None,
        "sparsity": pruned["sparsity"] if pruned else None,
        "sparsity_of": "embeddings out" if pruned else None,
        **chosen,
        "ram_bytes": row["ram_bytes"],
        "start_ms": row["start_ms"],
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


def blank(bench: str) -> dict[str, Any]:
    """A line of the results in which nothing was measured yet, from this machine and commit."""
    about = machine()
    numbers = (
        *("seed", "teacher_score", "score", "score_low", "score_high", "retention_pct", "parameters"),
        *("teacher_parameters", "size_bytes", "teacher_size_bytes", "smaller_x", "sparsity", "sparsity_of"),
        *("p50_ms", "teacher_p50_ms", "faster_x", "faster_x_eager_torch", "tokens_p50", "threads"),
        *("make_minutes", "energy_wh"),
    )
    return {
        **dict.fromkeys(numbers),
        "bench": bench,
        "split": "test",
        "energy_method": "none",
        "commit": commit(),
        "recipe_sha256": "",
        "machine": f"{about['cpu']}, {about['cores']} cores",
        "isa": about["isa"],
        "versions": versions(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def recorded(bench: str) -> list[dict[str, Any]]:
    """The lines in the results of a bench."""
    path = RESULTS / f"{bench}.jsonl"
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def append(bench: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to the results of a bench."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{bench}.jsonl").open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(values, ensure_ascii=False) + "\n" for values in lines)


def in_scope(confusion: Mapping[str, Any] | None, kind: str) -> dict[str, float]:
    """Accuracy on the texts that have an intent, where some are out of scope; of teacher and pocket alone."""
    if confusion is None or OUT_OF_SCOPE not in confusion["labels"] or kind not in confusion:
        return {}
    scope = [place for place, label in enumerate(confusion["labels"]) if label != OUT_OF_SCOPE]
    counts = confusion[kind]
    right, all_ = sum(counts[place][place] for place in scope), sum(sum(counts[place]) for place in scope)
    return {"in_scope_accuracy": right / all_}


def measured_already(bench: str, case: Case, seed: int, recipe: str) -> bool:
    """True where the results hold this row, made by this recipe from this seed."""
    wanted = (case.row, case.task, seed, recipe)
    return any(
        (row["row"], row["task"], row["seed"], row["recipe_sha256"]) == wanted for row in recorded(bench)
    )


def data_folder() -> Path:
    """`POCKETLM_DATA`, or `../shared/data` beside the repository."""
    return Path(os.environ.get("POCKETLM_DATA", ROOT.parent / "shared" / "data"))


if __name__ == "__main__":
    sys.exit(main())

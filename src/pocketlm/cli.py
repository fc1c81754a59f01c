"""The command line: each command parses, calls one public function and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from rich.console import Console

from pocketlm.errors import InputError, MissingExtraError, PocketlmError

if TYPE_CHECKING:
    from pocketlm.runtime.pocket import Prediction

app = typer.Typer(
    help="Language models small enough for a pocket.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipe_app = typer.Typer(help="Recipes: what is done, in order, with every setting.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")

INTERRUPTED = 130

TeacherArgument = Annotated[
    str | None, typer.Argument(help="A folder, a Hub id or pypi:…; none: the demo's.")
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="TSV, CSV, JSONL or Parquet, a folder of splits, or a Hub data set."),
]
ValidOption = Annotated[str | None, typer.Option("--valid", help="A file with the valid split.")]
TestOption = Annotated[str | None, typer.Option("--test", help="A file with the test split.")]
UnlabeledOption = Annotated[
    str | None,
    typer.Option("--unlabeled", help="Raw texts for the teacher to label: a text a line, or a table."),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub teacher.")
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="A recipe in YAML, one of the package's by name (tinybert, …), or a pocket."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field of a stage: distill.epochs=3. May be repeated."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Of everything random.")]
TextOption = Annotated[list[str] | None, typer.Option("--text", help="Text column; give it twice for pairs.")]
LabelOption = Annotated[str | None, typer.Option("--label", help="Label column.")]
GroupOption = Annotated[
    str | None, typer.Option("--group", help="Column whose equal values stay on one side of a cut.")
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="classification, regression, multilabel, tokens, joint or qa; default: by columns and labels.",
    ),
]
StratifyOption = Annotated[bool, typer.Option("--stratify", help="Cut missing splits within each label.")]
RowsOption = Annotated[
    int | None, typer.Option("--train-rows", help="Train on a fixed sample of so many rows.")
]
FineTuneOption = Annotated[
    str | None,
    typer.Option("--fine-tune", help="auto (where the teacher's head does not fit), always or never."),
]
NoControlsOption = Annotated[bool, typer.Option("--no-controls", help="Skip the controls.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; default: all cores.")
]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Language models small enough for a pocket."""
    if version:
        from pocketlm import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def shrink(
    teacher: TeacherArgument = None,
    data: DataOption = None,
    valid: ValidOption = None,
    test: TestOption = None,
    unlabeled: UnlabeledOption = None,
    revision: RevisionOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    group: GroupOption = None,
    task: TaskOption = None,
    stratify: StratifyOption = False,
    train_rows: RowsOption = None,
    fine_tune: FineTuneOption = None,
    no_controls: NoControlsOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The pocket's folder; default: pockets/NAME.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another recipe's pocket.")] = False,
    threads: ThreadsOption = None,
) -> None:
    """Make a small, measured model from a teacher and data; without arguments, the demo's."""
    from pocketlm import shrink as run_shrink
    from pocketlm.progress import Bars

    folder = run_shrink(
        teacher,
        data,
        valid=valid,
        test=test,
        unlabeled=unlabeled,
        revision=revision,
        recipe=recipe,
        seed=seed,
        out=out,
        overwrite=overwrite,
        threads=threads,
        progress=Bars(),
        overrides=_overrides(set_, text, label, group, task, stratify, train_rows, fine_tune, no_controls),
    )
    _print_pocket(folder)


@app.command()
def distill(
    teacher: TeacherArgument = None,
    data: DataOption = None,
    valid: ValidOption = None,
    test: TestOption = None,
    unlabeled: UnlabeledOption = None,
    revision: RevisionOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    group: GroupOption = None,
    task: TaskOption = None,
    stratify: StratifyOption = False,
    train_rows: RowsOption = None,
    fine_tune: FineTuneOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The student's folder; default: students/NAME.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another recipe's student.")] = False,
) -> None:
    """Train a recipe's student and stop there, with its score on valid; test is not looked at."""
    from pocketlm import distill_student
    from pocketlm.progress import Bars
    from pocketlm.verbs.shrink import training_of

    folder = distill_student(
        teacher,
        data,
        valid=valid,
        test=test,
        unlabeled=unlabeled,
        revision=revision,
        recipe=recipe,
        seed=seed,
        out=out,
        overwrite=overwrite,
        progress=Bars(),
        overrides=_overrides(set_, text, label, group, task, stratify, train_rows, fine_tune),
    )
    training = training_of(folder)
    print(
        f"{training['metric']} on valid: {training['valid_score']:.4f}, "
        f"the teacher's {training['teacher_valid_score']:.4f}"
    )
    print(folder)


@app.command()
def prune(
    model: Annotated[
        str | None, typer.Argument(help="As the teacher of shrink; with --corpus also a file in GGUF.")
    ] = None,
    data: DataOption = None,
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", help="Of a model that writes: plain text to calibrate on, a text a line."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", help="Text to measure it on; default: the last tenth of the corpus."),
    ] = None,
    valid: ValidOption = None,
    test: TestOption = None,
    revision: RevisionOption = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="magnitude, movement, obd or structured; with --corpus sparsegpt, wanda or magnitude.",
        ),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Fraction of weights to remove, embeddings out.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option("--pattern", help="2:4 keeps two of every four weights instead.")
    ] = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    group: GroupOption = None,
    task: TaskOption = None,
    stratify: StratifyOption = False,
    train_rows: RowsOption = None,
    fine_tune: FineTuneOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder; default: pruned/NAME.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another recipe's model.")] = False,
) -> None:
    """Prune an encoder on a task, or, with --corpus, a language model that writes; with what it costs."""
    from pocketlm import prune_decoder, prune_student
    from pocketlm.progress import Bars
    from pocketlm.verbs.prune import pruned_decoder
    from pocketlm.verbs.shrink import training_of

    own = _overrides(set_, text, label, group, task, stratify, train_rows, fine_tune)
    if corpus is None:
        if held_out is not None:
            raise InputError("--held-out goes with --corpus; name the valid split of a task with --valid")
        method = method or "magnitude"
        folder = prune_student(
            model,
            data,
            method=method,
            valid=valid,
            test=test,
            revision=revision,
            overrides=[*_fields(method, sparsity, pattern), *own],
            seed=seed,
            out=out,
            overwrite=overwrite,
            progress=Bars(),
        )
        found = training_of(folder)
        print(
            f"{found['metric']} on valid: {found['valid_score']:.4f}, "
            f"the teacher's {found['teacher_valid_score']:.4f}"
        )
    else:
        if model is None or data is not None:
            raise InputError("--corpus goes with a model that writes, named first, and without --data")
        folder = prune_decoder(
            model,
            corpus,
            method=method or "sparsegpt",
            held_out=held_out,
            revision=revision,
            overrides=[*_fields("prune_decoder", sparsity, pattern), *own],
            out=out,
            overwrite=overwrite,
            progress=Bars(),
        )
        found = pruned_decoder(folder)
        print(f"perplexity: {found['perplexity']:.2f}, before {found['perplexity_before']:.2f}")
    print(folder)


@app.command()
def quantize(
    model: Annotated[str | None, typer.Argument(help="As the teacher of shrink; a pocket, too.")] = None,
    data: DataOption = None,
    valid: ValidOption = None,
    test: TestOption = None,
    revision: RevisionOption = None,
    method: Annotated[
        str,
        typer.Option("--method", help="int8, static_int8, weight_only, gptq, qat or share."),
    ] = "int8",
    set_: SetOption = None,
    seed: SeedOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    group: GroupOption = None,
    task: TaskOption = None,
    stratify: StratifyOption = False,
    train_rows: RowsOption = None,
    fine_tune: FineTuneOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The pocket's folder; default: quantized/NAME.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another recipe's pocket.")] = False,
    threads: ThreadsOption = None,
) -> None:
    """Give a whole model weights of fewer bits, and measure what that costs; nothing is cut."""
    from pocketlm import quantize_model
    from pocketlm.progress import Bars

    folder = quantize_model(
        model,
        data,
        method=method,
        valid=valid,
        test=test,
        revision=revision,
        overrides=_overrides(set_, text, label, group, task, stratify, train_rows, fine_tune),
        seed=seed,
        out=out,
        overwrite=overwrite,
        threads=threads,
        progress=Bars(),
    )
    _print_pocket(folder)


@app.command()
def tickets(
    teacher: TeacherArgument = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="As of shrink; give it once a task. None: the demo's.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="Plain text, a text a line: find tickets on it, too.")
    ] = None,
    revision: RevisionOption = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Of pruning.")] = 9,
    share: Annotated[float, typer.Option("--share", help="Of all weights, removed in a round.")] = 0.1,
    rewind_step: Annotated[
        int, typer.Option("--rewind-step", help="Rewind to this step; 0 is before training.")
    ] = 0,
    epochs: Annotated[int, typer.Option("--epochs", help="Of every training.")] = 3,
    seeds: Annotated[int, typer.Option("--seeds", help="Trainings of every ticket and control.")] = 3,
    train_rows: Annotated[int, typer.Option("--train-rows", help="Train on a fixed sample at most.")] = 4000,
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The study's folder; default: tickets/NAMES.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another study.")] = False,
) -> None:
    """Find the weights of an encoder that are enough to learn a task, and try them on the others."""
    from pocketlm import tickets as run_tickets
    from pocketlm.progress import Bars
    from pocketlm.verbs.tickets import Plan, described, recipes_of

    folder = run_tickets(
        recipes_of(teacher, data, revision, train_rows, _overrides(set_)),
        Plan(rounds=rounds, share=share, rewind_step=rewind_step, epochs=epochs, seeds=seeds),
        corpus=corpus,
        out=out,
        overwrite=overwrite,
        progress=Bars(),
    )
    for name, task in described(folder)["tasks"].items():
        best = task["winning_round"]
        print(
            f"{name}: "
            + (f"a ticket wins at {task['sparsities'][best - 1]:.0%}" if best else "no ticket wins")
        )
    print(folder / "report.html")


@app.command()
def run(
    pocket: Annotated[Path, typer.Argument(help="A pocket's folder.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; for pairs, two after each other.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="A text a line, a tab between the two of a pair; - is standard input."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a line, with all probabilities.")
    ] = False,
    threads: ThreadsOption = None,
) -> None:
    """Predict with a pocket; no torch is needed."""
    from pocketlm.runtime.pocket import load

    model = load(pocket, threads)
    if (texts is None) == (file is None):
        raise InputError(
            "give texts after the pocket, or --file FILE with a text a line; exactly one of the two"
        )
    inputs = _lines(file, model.task.pair) if file else _arguments(texts or [], model.task.pair)
    for text, prediction in zip(inputs, model.predict(inputs), strict=True):
        if as_json:
            values = {"text": text, **asdict(prediction)}
            print(
                json.dumps(
                    {name: value for name, value in values.items() if value is not None}, ensure_ascii=False
                )
            )
        else:
            print(_shown(prediction))


@app.command()
def bench(
    pocket: Annotated[Path, typer.Argument(help="A pocket's folder.")],
    against: Annotated[
        str | None, typer.Option("--against", help="A teacher; default: the one of the pocket's recipe.")
    ] = None,
    revision: RevisionOption = None,
    data: DataOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Texts timed for each side.")] = 200,
    threads: ThreadsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON.")] = False,
) -> None:
    """Weigh and time a pocket against a teacher on this machine, in one run."""
    from pocketlm import bench as run_bench
    from pocketlm.progress import Bars
    from pocketlm.report.table import ledger_table

    ledger = run_bench(
        pocket,
        against,
        revision=revision,
        data=data,
        overrides=_overrides(None, text, label),
        rounds=rounds,
        threads=threads,
        progress=Bars(),
    )
    if as_json:
        print(json.dumps(ledger, ensure_ascii=False))
        return
    console = Console()
    console.print(ledger_table(ledger))
    for name, title in (
        ("faster_x", "same runtime"),
        ("faster_x_eager_torch", "eager PyTorch"),
        ("throughput_x", "batches of 32"),
    ):
        ratio = ledger["ratios"][name]
        console.print(
            f"{ratio['median']:.2f}x faster ({ratio['low']:.2f} to {ratio['high']:.2f}), {title}",
            markup=False,
        )
    for verdict in ledger["verdicts"]:
        console.print(verdict, style="yellow", markup=False)


@app.command()
def doctor(
    pocket: Annotated[Path, typer.Argument(help="A pocket's folder.")],
    against: Annotated[
        str | None, typer.Option("--against", help="A teacher; default: the one of the pocket's recipe.")
    ] = None,
    revision: RevisionOption = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Texts with labels; default: the pocket's own valid split.")
    ] = None,
    text: TextOption = None,
    label: LabelOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything found as JSON.")] = False,
) -> None:
    """Say what is wrong with a pocket, which layers cost most and what to change; 1 where it is broken."""
    from pocketlm import doctor as run_doctor
    from pocketlm.progress import Bars
    from pocketlm.report.diagnosis import show

    found = run_doctor(
        pocket,
        against,
        revision=revision,
        data=data,
        overrides=_overrides(None, text, label),
        progress=Bars(),
    ).to_dict()
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show(found, Console())
    if any(finding["fault"] for finding in found["findings"]):
        raise typer.Exit(1)


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="A pocket's folder; to gguf, a model that writes, as of prune --corpus.")
    ],
    to: Annotated[str, typer.Option("--to", help="executorch (.pte, for phones) or gguf (for llama.cpp).")],
    weights: Annotated[str, typer.Option("--weights", help="Of gguf: F32, F16, Q8_0 or Q4_0.")] = "Q8_0",
    revision: RevisionOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file; default: NAME.pte or NAME.gguf.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a model for another runtime; ONNX and safetensors are in every pocket."""
    from pocketlm import export_model
    from pocketlm.progress import Bars

    print(
        export_model(
            model,
            to,
            revision=revision,
            weights=cast(Any, weights),
            out=out,
            overwrite=overwrite,
            progress=Bars(),
        )
    )


@app.command()
def push(
    pocket: Annotated[Path, typer.Argument(help="A pocket's folder.")],
    repo: Annotated[str, typer.Argument(help="ORG/NAME on the Hub; made where it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private, where it is made.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch; default: main.")] = None,
) -> None:
    """Upload a pocket to the Hub, with its model card."""
    from pocketlm import push as run_push

    print(run_push(pocket, repo, private=private, revision=revision))


@app.command()
def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove it, while nothing else works on it.")
    ] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", help="Only what no run has asked for in so many days.")
    ] = 0.0,
) -> None:
    """Print what the results of stages take on disk, and make room; pockets need none of it."""
    from pocketlm import cache as run_cache
    from pocketlm.pipeline import cache_folder

    held = run_cache(clear=clear, older_than=older_than)
    for one in held:
        print(f"{one.size_bytes / 1e6:>12,.1f} MB  {one.results:>5} x {one.stage}")
    total = sum(one.size_bytes for one in held)
    print(f"{total / 1e6:>12,.1f} MB  {'removed from' if clear else 'in'} {cache_folder()}")


@recipe_app.command()
def show(
    source: Annotated[
        Path | None, typer.Argument(help="A recipe, its name, or a pocket; none: the demo's.")
    ] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", help="As of shrink.")] = None,
    data: DataOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
) -> None:
    """Print a recipe with every field of every stage."""
    resolved = _workshop("pocketlm.verbs.shrink").resolved_recipe(
        teacher, data, recipe=source, overrides=_overrides(set_), seed=seed
    )
    print(resolved.to_yaml(), end="")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: an error that we raise on purpose is one line and exit code 2, Ctrl-C is 130."""
    errors = Console(stderr=True)
    try:
        code = cast(Callable[..., Any], app)(args=arguments, standalone_mode=False)
    except PocketlmError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except typer.TyperException as error:
        error.show()  # pyright: ignore[reportAttributeAccessIssue] (every subclass has it)
        code = error.exit_code
    except BrokenPipeError:
        code = 0
    if code == INTERRUPTED:  # some versions of typer turn Ctrl-C into this code themselves
        errors.print("stopped; the same command goes on from here", markup=False)
    sys.exit(code or 0)


def _print_pocket(folder: Path) -> None:
    """The ledger of a new pocket, what has to be said of it, and where its report is."""
    from pocketlm.report.table import ledger_table
    from pocketlm.runtime.manifest import read_info

    ledger = read_info(folder)["ledger"]
    console = Console()
    console.print(ledger_table(ledger))
    for verdict in ledger["verdicts"]:
        console.print(verdict, style="yellow", markup=False)
    print(folder / "report.html")


def _overrides(
    set_: Sequence[str] | None,
    text: Sequence[str] | None = None,
    label: str | None = None,
    group: str | None = None,
    task: str | None = None,
    stratify: bool = False,
    train_rows: int | None = None,
    fine_tune: str | None = None,
    no_controls: bool = False,
) -> list[tuple[str, str, Any]]:
    """Options that are fields of stages; `--set` comes last and wins."""
    options = [
        ("prepare", "text", list(text) if text else None),
        ("prepare", "label", label),
        ("prepare", "group", group),
        ("prepare", "kind", task),
        ("prepare", "stratify", stratify or None),
        ("prepare", "train_rows", train_rows),
        ("finetune", "mode", fine_tune),
        ("controls", "enabled", False if no_controls else None),
    ]
    given = [option for option in options if option[2] is not None]
    return [*given, *(_workshop("pocketlm.recipe").setting(text) for text in set_ or ())]


def _fields(stage: str, sparsity: float | None, pattern: str | None) -> list[tuple[str, str, Any]]:
    """What is to be removed, as fields of the stage that removes it."""
    given = (("sparsity", sparsity), ("pattern", pattern))
    return [(stage, name, value) for name, value in given if value is not None]


def _workshop(module: str) -> Any:
    """Import a module that needs the extra `compress`.

    Raises:
        MissingExtraError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("pocketlm"):
            raise
        raise MissingExtraError(error.name, "compress") from error


def _shown(prediction: Prediction) -> str:
    """A prediction on one line: label and score, a value, labels, spans by name, or the answer."""
    score, spans = f"{prediction.score:.3f}", prediction.spans
    if prediction.labels is not None:
        scores = prediction.scores or {}
        return ", ".join(f"{label} {scores[label]:.3f}" for label in prediction.labels) or "-"
    if prediction.answer is not None:
        return f"{prediction.answer}\t{score}"
    slots = None if spans is None else "; ".join(f"{span.name}: {span.text}" for span in spans) or "-"
    if prediction.label is not None:
        return "\t".join([prediction.label, score, *([slots] if slots else [])])
    return f"{prediction.score:.4f}" if slots is None else slots


def _arguments(texts: Sequence[str], pair: bool) -> list[Any]:
    if not pair:
        return list(texts)
    if len(texts) % 2:
        raise InputError(
            f"the pocket reads pairs, and {len(texts)} texts are not pairs; give two after each other"
        )
    return list(zip(texts[::2], texts[1::2], strict=True))


def _lines(file: Path, pair: bool) -> list[Any]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file} as UTF-8 text: {error}") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    if not pair:
        return lines
    pairs = [tuple(line.split("\t")) for line in lines]
    for number, fields in enumerate(pairs, start=1):
        if len(fields) != 2:
            raise InputError(
                f"{file}, line {number}: the pocket reads pairs, so give two texts with one tab between"
            )
    return pairs

"""Teacher and pocket side by side: both in the same runtime, on the same texts, in one run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer

from pocketlm.artifact import Artifact, write_json
from pocketlm.data.examples import Examples, load_split
from pocketlm.errors import RecipeError
from pocketlm.export.onnx import export
from pocketlm.export.pack import FORMAT, described_files, shipped, shipped_bytes
from pocketlm.measure.controls import scored_row
from pocketlm.measure.energy import METHOD_TEXT, Meter, request_energy
from pocketlm.measure.fresh import peak_ram_bytes, start_ms
from pocketlm.measure.kinds import by_name, confusions, disagreements
from pocketlm.measure.zeros import worth_of_zeros
from pocketlm.models.load import Classifier, parameters_of
from pocketlm.runtime.manifest import MODEL, TOKENIZER, read_info
from pocketlm.runtime.pocket import Pocket, Text, load, session
from pocketlm.stage import Context
from pocketlm.tasks.metrics import Logits, headline, retention_interval
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import inputs_of
from pocketlm.timing import interleave, throughput

BATCH = 32
WARMUP = 20
REST_SECONDS = 0.02
ENERGY_TEXTS = 64
RAM_TEXTS = 32


@dataclass(frozen=True)
class Measure:
    """Measure teacher and pocket on the test split.

    Args:
        rounds: Single texts timed for each model, in turn.
        batches: Batches of 32 timed for each model, in turn.
    """

    rounds: int = 200
    batches: int = 8
    timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("rounds", "batches"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)} is out of range; it must be 1 or more")

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the figure `measured`: see `compare`."""
        task, max_length = artifact.task, artifact.figures["max_length"]
        teacher = Classifier.load(artifact.parts["teacher"], task, max_length)
        test = load_split(artifact.parts["data"], "test")
        measured = compare(teacher, artifact.parts["teacher"], artifact.parts["pocket"], test, self, context)
        if "pruned" in artifact.figures:
            measured["zeros"] = self.zeros(artifact.parts["pocket"], test, context)
        return artifact.with_figures(measured=measured)

    def zeros(self, pocket: Path, test: Examples, context: Context) -> dict[str, Any]:
        """What the zeros of a pocket are worth."""
        info, texts = read_info(pocket), inputs_of(test.texts)
        tokenizer = str(pocket / TOKENIZER)

        def answer(graph: Path) -> Callable[[int], object]:
            return one_text(Pocket(info, session(graph, 1), Tokenizer.from_file(tokenizer)), texts)

        return worth_of_zeros(pocket / MODEL, context.folder, answer, len(texts))


def compare(
    teacher: Classifier,
    teacher_folder: Path,
    pocket_folder: Path,
    test: Examples,
    how: Measure,
    context: Context,
    scored: bool = True,
) -> dict[str, Any]:
    """Score, time and weigh a teacher and a pocket.

    Args:
        teacher: In torch; it is exported to ONNX Runtime float32, so that both run in the same runtime.
        teacher_folder: Where its weights and tokenizer lie, for its size.
        pocket_folder: A pocket.
        test: Real inputs with labels.
        how: Numbers of rounds.
        context: Its folder takes the teacher's graph.
        scored: False leaves the scores out, for a teacher without a head for this task.

    Returns:
        `rows` (the ledger's rows of teacher and pocket), `ratios`, `confusion`, `by_name`, `disagreements`,
        `tokens_p50`, `request_wh` and `energy_method`.
    """
    teacher_pocket = as_pocket(teacher, context.folder / "teacher-onnx")
    # As transformers runs it unless told otherwise.
    teacher.model.set_attn_implementation(teacher.model.get_correct_attn_implementation(None))
    threads, texts = context.threads, inputs_of(test.texts)
    runs: dict[str, Pocket] = {
        "teacher": load(teacher_pocket, threads),
        "pocket": load(pocket_folder, threads),
    }
    with context.progress.task("measure both sides", 5) as advance:
        answers = {name: one_text(run, texts) for name, run in runs.items()}
        single = interleave(answers, len(texts), how.rounds, WARMUP)
        with torch_threads(threads):
            both = {"eager": eager(teacher, test), "pocket": answers["pocket"]}
            in_eager = interleave(both, len(texts), how.rounds, WARMUP, REST_SECONDS)
        advance(1)
        batched = throughput(
            {name: many_texts(run, texts) for name, run in runs.items()}, len(texts), BATCH, how.batches
        )
        advance(1)
        opened = {"teacher": teacher_pocket, "pocket": shipped(pocket_folder)}
        ram = {name: peak_ram_bytes(path, texts[:RAM_TEXTS], threads) for name, path in opened.items()}
        start = {name: start_ms(path, texts[0], threads) for name, path in opened.items()}
        advance(1)
        request_wh = {name: energy_of(run, texts[:ENERGY_TEXTS]) for name, run in runs.items()}
        with Meter() as meter:
            pass
        advance(1)
        logits = {name: run.logits(texts) for name, run in runs.items()} if scored else {}
        advance(1)
    sizes = {"teacher": weights_bytes(teacher_folder), "pocket": shipped_bytes(pocket_folder)}
    parameters: dict[str, Any] = {
        "teacher": parameters_of(teacher.model),
        "pocket": runs["pocket"].info.get("parameters"),
    }
    fewer = parameters["teacher"] / parameters["pocket"] if parameters["pocket"] else None
    rows = [
        {
            "name": name,
            "kind": name,
            "label": name,
            **(scores_of(test, logits, name, teacher.task) if scored else {}),
            "parameters": parameters[name],
            "size_bytes": sizes[name],
            "ram_bytes": ram[name],
            "start_ms": start[name],
            "p50_ms": single.p50(name),
            "p95_ms": single.p95(name),
            "throughput_per_s": batched.texts_per_second(name),
            "eager_p50_ms": in_eager.p50("eager") if name == "teacher" else None,
        }
        for name in runs
    ]
    return {
        "rows": rows,
        "ratios": {
            "smaller_x": sizes["teacher"] / sizes["pocket"],
            "fewer_parameters_x": fewer,
            "faster_x": asdict(single.ratio("teacher", "pocket")),
            "faster_x_eager_torch": asdict(in_eager.ratio("eager", "pocket")),
            "throughput_x": asdict(batched.ratio("pocket", "teacher")),
        },
        "confusion": confusions(test, logits, teacher.task) if scored else None,
        "by_name": by_name(test, logits, teacher.task) if scored else None,
        "disagreements": disagreements(test, logits, teacher.task) if scored else [],
        "tokens_p50": int(np.median([len(encoding.ids) for encoding in runs["teacher"].encode(texts)])),
        "request_wh": request_wh,
        "energy_method": meter.method,
        "energy_text": METHOD_TEXT[meter.method],
        "grid": meter.grid,
        "threads": threads,
        "examples": len(test),
    }


def as_pocket(classifier: Classifier, folder: Path) -> Path:
    """A classifier as a folder that the runtime loads: its graph in float32, its tokenizer."""
    export(classifier, folder / "model.onnx")
    classifier.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    info = {
        "format": FORMAT,
        "name": "teacher",
        "task": classifier.task.to_dict(),
        "max_length": classifier.max_length,
        "files": described_files(folder),
    }
    write_json(folder / "pocket.json", info)
    return folder


def one_text(run: Pocket, texts: Sequence[Text]) -> Callable[[int], object]:
    """A callable that answers the text of an index, alone."""
    return lambda index: run.logits([texts[index]], 1)


def many_texts(run: Pocket, texts: Sequence[Text]) -> Callable[[Sequence[int]], object]:
    """A callable that answers the texts of some indices as one batch."""
    return lambda indices: run.logits([texts[index] for index in indices], BATCH)


@contextmanager
def torch_threads(threads: int) -> Generator[None]:
    """Torch's number of threads; set back afterwards, or the next training would round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def eager(teacher: Classifier, test: Examples) -> Callable[[int], object]:
    """The teacher as most people run it: eager PyTorch, one text at a time."""
    return lambda index: teacher.logits(teacher.encode(test.texts[index : index + 1]))


def energy_of(run: Pocket, texts: Sequence[Text]) -> float | None:
    """Watt-hours of one text at batch 1."""

    def all_texts() -> None:
        for text in texts:
            run.logits([text], 1)

    return request_energy(all_texts, len(texts))


def weights_bytes(folder: Path) -> int:
    """Bytes of a teacher: its safetensors and its tokenizer."""
    names = [
        path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name == "tokenizer.json"
    ]
    return sum(path.stat().st_size for path in names)


def scores_of(test: Examples, logits: dict[str, Logits], name: str, task: Task) -> dict[str, Any]:
    """Score, interval and retention of one side."""
    labels = test.labels
    row = scored_row(task, logits[name], labels)
    if name == "teacher":
        return {**row, "retention_pct": 100.0, "retention_low": None, "retention_high": None}
    teacher_score = scored_row(task, logits["teacher"], labels)["score"]
    low, high = retention_interval(
        headline(task, logits[name], labels), headline(task, logits["teacher"], labels), len(labels)
    )
    retention = 100 * row["score"] / teacher_score
    return {**row, "retention_pct": retention, "retention_low": low, "retention_high": high}

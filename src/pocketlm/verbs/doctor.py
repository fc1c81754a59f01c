"""`pocketlm doctor`: what is wrong with a pocket, which layers cost most, and what to change."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import onnx

from pocketlm.diagnose.finding import Finding
from pocketlm.diagnose.graphs import Map, Value, maps, of_graphs, of_outliers, values
from pocketlm.diagnose.labels import of_labels
from pocketlm.diagnose.layers import Likeness, likeness
from pocketlm.diagnose.speed import Times, of_times, times
from pocketlm.diagnose.vocabulary import of_vocabulary
from pocketlm.errors import PocketError, storage_errors
from pocketlm.export.onnx import export
from pocketlm.models.load import Classifier
from pocketlm.progress import Progress, Quiet
from pocketlm.quantize.control import Judge, feeds_of, parts_of, ranking
from pocketlm.quantize.int8 import quantize
from pocketlm.recipe import ONE_OF, STAGES, Override
from pocketlm.runtime.manifest import MEND, MODEL, TOKENIZER
from pocketlm.tasks.words import inputs_of
from pocketlm.verbs.bench import both_sides

COMPARED_TEXTS = 128
TRACED_TEXTS = 32
WORST = 3
"""Products that a patch keeps in float32."""
COSTLY = 1e-3
"""Change of the logits, relative to their mean square, below which no product is worth a patch."""


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Args:
        findings: Faults first.
        scores: The headline metric of pocket and teacher; the teacher's is None where it has no head.
        layers: The pocket's layers and the teacher's that are most like them.
        values: What the pocket's operators make, against the same model in float32.
        maps: The pocket's weights, against the same.
        costs: Products and what 8 bits of each alone change of the logits (relative mean square), most first.
        times: Where the time of one text goes.
    """

    findings: list[Finding]
    scores: dict[str, float | None]
    layers: list[Likeness]
    values: list[Value]
    maps: list[Map]
    costs: list[tuple[str, float]]
    times: Times

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def doctor(
    pocket: Path,
    against: str | None = None,
    *,
    revision: str | None = None,
    data: str | None = None,
    overrides: Sequence[Override] = (),
    progress: Progress | None = None,
) -> Diagnosis:
    """Examine a pocket on labelled texts: its labels, pieces, graph, layers and time.

    Args:
        pocket: A pocket's folder.
        against: A folder, a Hub id or `pypi:…`; None takes the teacher that the pocket's recipe makes.
        revision: Of a Hub teacher.
        data: A file with labels, or a folder or Hub data set with a valid split; None takes the pocket's own.
        overrides: Fields of the recipe's stages to change, such as the columns of `data`.
        progress: Shows how far it is.

    Raises:
        PocketlmError: see `pocketlm.errors`.
    """
    progress = progress or Quiet()
    both = both_sides(pocket, against, revision, data, overrides, "valid", progress)
    task, examples, loaded = both.pocket.task, both.examples, both.pocket
    quantizer = quantizer_of(loaded.info)
    judge = Judge(task, loaded.max_length, pocket / TOKENIZER, examples)
    master = Classifier.load(pocket, task, loaded.max_length)
    pieces, rows = master.tokenizer.get_vocab_size(), cast(Any, master.model.config).vocab_size
    if pieces > rows:
        raise PocketError(
            f"{pocket / TOKENIZER} has {pieces} pieces and the table of the model {rows}, so it is of "
            f"another model; {MEND}"
        )
    texts, shown = examples.texts[:COMPARED_TEXTS], inputs_of(examples.texts)
    with (
        storage_errors(Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory() as work,
        progress.task("examine", 6) as advance,
    ):
        said = loaded.logits(shown)
        findings = of_labels("pocket", task, said, examples.labels)
        scores: dict[str, float | None] = {"pocket": judge.score_of(said), "teacher": None}
        if both.scored:
            theirs = both.teacher.logits(both.teacher.encode(examples.texts))
            findings += of_labels("teacher", task, theirs, examples.labels)
            scores["teacher"] = judge.score_of(theirs)
        advance(1)
        findings += of_vocabulary(master, both.teacher, texts)
        advance(1)
        floats, trial = Path(work) / "float.onnx", Path(work) / "trial.onnx"
        export(master, floats)
        graph = onnx.load(floats)
        parts = parts_of(graph)
        onnx.save(graph, floats)
        advance(1)
        feeds = feeds_of(loaded, shown[:TRACED_TEXTS])
        compared, weights = values(floats, pocket / MODEL, feeds), maps(floats, pocket / MODEL)
        findings += [*of_graphs(compared, weights), *of_outliers(compared)]
        advance(1)
        costs = ranking(floats, trial, lambda path, kept: quantize(floats, path, floats=kept), parts, judge)
        layers = likeness(master, both.teacher, texts)
        advance(1)
        taken = times(judge.opened(pocket / MODEL, 1), pocket / MODEL, judge.opened(floats, 1), shown)
        findings += [*of_costs(costs, quantizer), *of_times(taken, quantizer)]
        advance(1)
    findings.sort(key=lambda finding: not finding.fault)
    return Diagnosis(findings, scores, layers, compared, weights, costs, taken)


def quantizer_of(info: Mapping[str, Any]) -> str:
    """The stage that quantized a pocket's graph, by its history; `int8` where that does not say."""
    made = {str(line).partition("(")[0] for line in info.get("history", ())}
    return next((name for name in ONE_OF if STAGES[name].__name__ in made), "int8")


def of_costs(costs: Sequence[tuple[str, float]], stage: str = "int8") -> list[Finding]:
    """The products and tables that 8 bits hurt most, with what keeps them in float32."""
    worst = [(name, cost) for name, cost in costs[:WORST] if cost >= COSTLY]
    if not worst:
        return []
    listed = ", ".join(f"{name} ({cost:.2%} of the logits)" for name, cost in worst)
    patch: dict[str, dict[str, object]] = {stage: {"keep": [name for name, _ in worst]}}
    return [Finding("divergence", False, f"8 bits cost most in {listed}; to keep these in float32:", patch)]

"""Accuracy control: parts that few bits hurt go back to float32, until the user can bear the loss.

The parts of a graph are its products with weights and its embedding tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import onnx
from tokenizers import Tokenizer

from pocketlm.artifact import Artifact
from pocketlm.data.examples import Examples, load_split
from pocketlm.errors import RecipeError
from pocketlm.export.graph import named_after
from pocketlm.quantize.stored import store_halves, store_products, tables_of
from pocketlm.runtime.pocket import Pocket, Text, pad, session
from pocketlm.tasks.metrics import headline
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits, inputs_of

PROBED = 64
"""Texts by which the parts are ranked."""

Make = Callable[[Path, Sequence[str]], None]
"""Writes the quantized graph to a path, some parts left in float32."""


@dataclass(frozen=True)
class Control:
    """What was found.

    Args:
        score: Of the graph that is kept, on valid.
        score_float: Of the graph in float32.
        floats: Parts that went back, those that fewer bits hurt most first.
        floats_stored: Bits that these have in the file; with 8, tables among them have 16.
    """

    score: float
    score_float: float
    floats: list[str]
    floats_stored: Literal[8, 16, 32]


@dataclass(frozen=True)
class Judge:
    """Measures graphs of one task on examples.

    Args:
        task: What the graphs are asked to do.
        max_length: Pieces that they read.
        tokenizer: The file of the tokenizer whose pieces these are.
        examples: With labels.
    """

    task: Task
    max_length: int
    tokenizer: Path
    examples: Examples

    @classmethod
    def of(cls, artifact: Artifact, split: str = "valid") -> Self:
        """On a split, for the graphs of the parts `data` and `student`."""
        tokenizer = artifact.parts["student"] / "tokenizer.json"
        examples = load_split(artifact.parts["data"], split)
        return cls(artifact.task, artifact.figures["max_length"], tokenizer, examples)

    def logits(self, graph: Path, most: int | None = None) -> Any:
        """What a graph says of the examples, or of the first of them."""
        return self.opened(graph).logits(self.inputs[:most])

    @property
    def inputs(self) -> list[Text]:
        """The examples' texts as the runtime takes them."""
        return inputs_of(self.examples.texts)

    def opened(self, graph: Path, threads: int | None = None) -> Pocket:
        """A graph as a pocket."""
        info = {"name": graph.stem, "task": self.task.to_dict(), "max_length": self.max_length}
        return Pocket(info, session(graph, threads), Tokenizer.from_file(str(self.tokenizer)))

    def score(self, graph: Path) -> float:
        """The headline metric on the examples."""
        return self.score_of(self.logits(graph))

    def score_of(self, logits: Any) -> float:
        """The same, of what was said of them."""
        metric = headline(self.task, logits, self.examples.labels)
        return float(metric(np.arange(len(self.examples))))


def feeds_of(pocket: Pocket, texts: Sequence[Text]) -> list[dict[str, np.ndarray]]:
    """What a pocket's graph is given for some texts: one each, so without padding."""
    return [pad([pieces], 0) for pieces in pocket.encode(texts)]


def products_of(model: onnx.ModelProto) -> list[str]:
    """Name the products with weights of a graph after these, in place: `encoder.layer.0.output.dense`.

    Returns:
        The names, in the graph's order; every one is another.
    """
    weights, owners = {tensor.name for tensor in model.graph.initializer}, named_after(model)
    found: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and weights & {*node.input}:
            name = owners.get(node.output[0], "product")
            node.name = name if name not in found else f"{name}_{len(found)}"
            found[node.name] = None
    return list(found)


def check_tolerance(tolerance: float | None) -> None:
    """Of a stage's field.

    Raises:
        RecipeError: it is below 0.
    """
    if tolerance is not None and tolerance < 0:
        raise RecipeError(f"tolerance={tolerance} is out of range; allowed: 0 or more, or null")


def parts_of(model: onnx.ModelProto) -> list[str]:
    """All that may have few bits: products, which are named in place (see `products_of`), and tables."""
    return [*products_of(model), *tables_of(model.graph)]


def named(
    artifact: Artifact, folder: Path, keep: Sequence[str], products: bool = True, tables: bool = True
) -> tuple[Path, list[str]]:
    """The exported graph with its products named, in a folder, and the parts that may be quantized.

    Args:
        artifact: With the part `onnx`.
        folder: Where the graph goes.
        keep: Parts that may not be.
        products: Whether products may be at all.
        tables: Likewise.

    Raises:
        RecipeError: `keep` names a part that the graph does not have.
    """
    model, source = onnx.load(artifact.parts["onnx"]), folder / "named.onnx"
    parts, of_tables = parts_of(model), tables_of(model.graph)
    unknown = sorted({*keep} - {*parts})
    if unknown:
        raise RecipeError(f"keep names no parts {unknown}; the graph has {parts}")
    onnx.save(model, source)
    return source, [
        part for part in parts if part not in keep and (tables if part in of_tables else products)
    ]


def controlled(
    source: Path,
    target: Path,
    make: Make,
    parts: Sequence[str],
    artifact: Artifact,
    tolerance: float | None,
) -> dict[str, Any]:
    """Quantize within a tolerance, see `backed_off`, and say what was found; None only quantizes."""
    if tolerance is None:
        make(target, ())
        return {}
    return asdict(backed_off(source, target, make, parts, Judge.of(artifact), tolerance))


def backed_off(
    source: Path, target: Path, make: Make, parts: Sequence[str], judge: Judge, tolerance: float
) -> Control:
    """Quantize, and take parts back to float32 until no more is lost on valid than allowed.

    They are ranked by what each alone does to the logits of some texts; 1, 2, 4, … of them go back. Those
    compute in float32 from weights that are stored in as few bits as lose no more: 8 of products, or 16.

    Args:
        source: The graph in float32, its products named.
        target: Where the graph that is kept goes.
        make: Quantizes the source.
        parts: See `parts_of`.
        judge: Measures.
        tolerance: Of the metric, such as 0.005.
    """
    whole = judge.score(source)
    make(target, ())
    score, floats, count = judge.score(target), list[str](), 1
    ranked: list[str] = []
    while whole - score > tolerance and len(floats) < len(parts):
        ranked = ranked or [part for part, _ in ranking(source, target, make, parts, judge)]
        floats, count = ranked[:count], 2 * count
        make(target, floats)
        score = judge.score(target)
    if not floats:
        return Control(score, whole, floats, 32)
    stored = target.with_name("stored.onnx")
    for bits in (8, 16):
        model = onnx.load(target)
        if bits == 8:
            store_products(model, [node.name for node in model.graph.node if node.name not in floats])
        store_halves(model, floats)
        onnx.save(model, stored)
        score_stored = judge.score(stored)
        if score_stored >= min(score, whole - tolerance):
            stored.replace(target)
            return Control(score_stored, whole, floats, bits)
    stored.unlink()
    return Control(score, whole, floats, 32)


def ranking(
    source: Path, target: Path, make: Make, parts: Sequence[str], judge: Judge
) -> list[tuple[str, float]]:
    """Parts and what few bits of each alone cost, largest first; see `backed_off` for the arguments.

    Returns:
        The cost is the mean squared change of the logits, relative to their own mean square.
    """
    wanted = _flat(judge.logits(source, PROBED))
    hurts: dict[str, float] = {}
    for part in parts:
        make(target, [other for other in parts if other != part])
        change = np.square(_flat(judge.logits(target, PROBED)) - wanted).mean()
        hurts[part] = float(change / max(np.square(wanted).mean(), 1e-12))
    return sorted(hurts.items(), key=lambda hurt: -hurt[1])


def _flat(logits: Any) -> np.ndarray:
    if isinstance(logits, WordLogits):
        return np.concatenate([logits.text.ravel(), logits.words.ravel()])
    return np.asarray(logits).ravel()

"""Accuracy control: the products that 8 bits hurt most stay in float32, until the user can bear the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tokenizers import Tokenizer

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.metrics import headline
from pocketlm.runtime.pocket import Pocket, session
from pocketlm.words import WordLogits

PROBED = 64
"""Texts by which the products are ranked."""

Make = Callable[[Path, Sequence[str]], None]
"""Writes the quantized graph to a path, some products left in float32."""


@dataclass(frozen=True)
class Control:
    """What was found.

    Args:
        score: Of the graph that is kept, on valid.
        score_float: Of the graph in float32.
        floats: Products that stay in float32, those that 8 bits hurt most first.
    """

    score: float
    score_float: float
    floats: list[str]


@dataclass(frozen=True)
class Judge:
    """Measures graphs of one task on valid.

    Args:
        artifact: With the parts `data` and `student`, whose tokenizer the graphs read.
    """

    artifact: Artifact

    def logits(self, graph: Path, most: int | None = None) -> Any:
        """What a graph says of valid, or of its first texts."""
        examples = load_split(self.artifact.parts["data"], "valid")
        info = {
            "name": "graph",
            "task": self.artifact.task.to_dict(),
            "max_length": self.artifact.figures["max_length"],
        }
        tokenizer = Tokenizer.from_file(str(self.artifact.parts["student"] / "tokenizer.json"))
        texts = [texts[0] if len(texts) == 1 else (texts[0], texts[1]) for texts in examples.texts[:most]]
        return Pocket(info, session(graph), tokenizer).logits(texts)

    def score(self, graph: Path) -> float:
        """The headline metric on valid."""
        examples = load_split(self.artifact.parts["data"], "valid")
        metric = headline(self.artifact.task, self.logits(graph), examples.labels)
        return float(metric(np.arange(len(examples))))


def products_of(model: onnx.ModelProto) -> list[str]:
    """The products with weights of a graph, by name; those without a name get one, in place."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found: list[str] = []
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and weights & {*node.input}:
            node.name = node.name or f"product_{len(found)}"
            found.append(node.name)
    return found


def backed_off(
    source: Path, target: Path, make: Make, products: Sequence[str], judge: Judge, tolerance: float
) -> Control:
    """Quantize, and take products back to float32 until no more is lost on valid than allowed.

    They are ranked by what each alone does to the logits of some texts; 1, 2, 4, … of them go back.

    Args:
        source: The graph in float32, its products named.
        target: Where the graph that is kept goes.
        make: Quantizes the source.
        products: See `products_of`.
        judge: Measures.
        tolerance: Of the metric, such as 0.005.

    Returns:
        Where all products are back and the loss is still above the tolerance, the embeddings cause it.
    """
    whole = judge.score(source)
    make(target, ())
    score, floats, count = judge.score(target), list[str](), 1
    ranked: list[str] = []
    while whole - score > tolerance and len(floats) < len(products):
        ranked = ranked or _ranked(source, target, make, products, judge)
        floats, count = ranked[:count], 2 * count
        make(target, floats)
        score = judge.score(target)
    return Control(score, whole, floats)


def _ranked(source: Path, target: Path, make: Make, products: Sequence[str], judge: Judge) -> list[str]:
    """Products by the mean squared change of the logits where they alone are quantized, largest first."""
    wanted = _flat(judge.logits(source, PROBED))
    hurts: dict[str, float] = {}
    for product in products:
        make(target, [other for other in products if other != product])
        hurts[product] = float(np.square(_flat(judge.logits(target, PROBED)) - wanted).mean())
    return sorted(products, key=lambda product: -hurts[product])


def _flat(logits: Any) -> np.ndarray:
    if isinstance(logits, WordLogits):
        return np.concatenate([logits.text.ravel(), logits.words.ravel()])
    return np.asarray(logits).ravel()

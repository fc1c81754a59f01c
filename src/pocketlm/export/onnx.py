"""Export a classifier to ONNX, one graph with a dynamic batch and length.

Only operators of the ONNX standard are written (opset 23 has Attention and Gelu as such), so the
file runs in every runtime that implements it; ONNX Runtime fuses further when it loads the graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.errors import PocketError
from pocketlm.export.first_position import read_first_position
from pocketlm.export.fuse import fuse_attention
from pocketlm.export.graph import split_gemms
from pocketlm.models.load import Classifier, student_of
from pocketlm.runtime.pocket import session
from pocketlm.stage import Context
from pocketlm.tasks.task import Task

OPSET = 23
CHECKED_EXAMPLES = 500


@dataclass(frozen=True)
class Export:
    """Write the student as `model.onnx` in float32 and check it against torch.

    Args:
        tolerance: Largest difference of a logit, relative to the largest logit, on texts of valid.
    """

    tolerance: float = 1e-3

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part `onnx` and the figure `export` (opset, largest difference).

        Raises:
            PocketError: the graph and the torch model disagree.
        """
        student = student_of(artifact)
        path = context.folder / "model.onnx"
        export(student, path)
        texts = load_split(artifact.parts["data"], "valid").texts[:CHECKED_EXAMPLES]
        difference = largest_difference(student, path, texts)
        if not difference <= self.tolerance:  # NaN is no agreement either
            raise PocketError(
                f"the exported graph differs from torch by {difference:.2g} of the largest logit, more than "
                f"{self.tolerance:g}; please report this with the versions of torch and onnxruntime"
            )
        return artifact.with_part("onnx", path).with_figures(
            export={"opset": OPSET, "largest_difference": difference}
        )


def graph_outputs(task: Task) -> list[str]:
    """What a graph of this task returns: `logits`, `word_logits` or both."""
    return [*(["logits"] if task.outputs else []), *(["word_logits"] if task.word_outputs else [])]


class Logits(nn.Module):
    """A classifier as a function of plain tensors."""

    def __init__(self, model: nn.Module, names: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, names, outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the graph returns, of what it takes."""
        said = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(said[name] for name in self.outputs)


def export(classifier: Classifier, path: Path) -> None:
    """Write a classifier as a float32 ONNX graph.

    Its outputs are `logits` [batch, outputs] where the whole text has labels, and `word_logits`
    [batch, length, word_outputs] where its words are asked for.
    """
    encoded = classifier.encode(
        [("a b",) if not classifier.task.pair else ("a b", "c"), ("d",) * (1 + classifier.task.pair)]
    )
    inputs = classifier.inputs(encoded, [0, 1])
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    outputs = graph_outputs(classifier.task)
    model = Logits(classifier.model, list(inputs), outputs).eval()
    with quiet(), fused_attention(classifier.model):
        program = torch.onnx.export(
            model,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=(tuple({0: batch, 1: length} for _ in inputs),),
        )
    graph = cast(onnx.ModelProto, cast(Any, program).model_proto)
    forget_origin(graph)
    fuse_attention(graph)
    read_first_position(graph)
    split_gemms(graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, path)


def forget_origin(model: onnx.ModelProto) -> None:
    """Drop the stack traces that the exporter leaves in a graph: bytes, and paths of this machine."""
    graph = model.graph
    values = (*graph.value_info, *graph.initializer, *graph.input, *graph.output)
    for part in (model, graph, *graph.node, *values):
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextlib.contextmanager
def fused_attention(model: PreTrainedModel) -> Generator[None]:
    """Let the model compute attention in one operator where it can; the exporter maps that to ONNX's own."""
    before = cast(str, model.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]
    model.set_attn_implementation(model.get_correct_attn_implementation(None))
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def largest_difference(classifier: Classifier, path: Path, texts: Sequence[Sequence[str]]) -> float:
    """Largest difference of a logit between torch and a graph, relative to the largest logit."""
    encoded = classifier.encode(texts)
    run, outputs = session(path, None), graph_outputs(classifier.task)
    names = {node.name for node in run.get_inputs()}
    classifier.model.eval()
    largest, differences = 1e-6, [0.0]
    for index in range(len(encoded)):
        inputs = classifier.inputs(encoded, [index])
        with torch.no_grad():
            said = classifier.model(**inputs)
        feed = {name: tensor.numpy() for name, tensor in inputs.items() if name in names}
        for name, got in zip(outputs, run.run(outputs, feed), strict=True):
            wanted = said[name].float().numpy()
            differences.append(float(np.abs(got - wanted).max()))
            largest = max(largest, float(np.abs(wanted).max()))
    return float(np.max(differences)) / largest


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """The exporter talks through print, logging and warnings; none of it helps a user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

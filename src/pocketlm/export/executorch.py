"""Export a classifier to ExecuTorch, for phones: one `.pte` whose products run in XNNPACK.

The program's method `forward` takes what the tokenizer gives, int64 [1, length] each, in the order of
`program_inputs`, and returns what the graph does (`pocketlm.export.onnx.graph_outputs`). Weights are float32.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketlm.errors import MissingExtraError, PocketError
from pocketlm.export.onnx import Logits, fused_attention, graph_outputs, quiet
from pocketlm.models.load import Classifier

SHORTEST = 2
"""Pieces of the shortest text: what a tokenizer puts before it and behind it."""
TOLERANCE = 1e-3


def export_executorch(classifier: Classifier, path: Path) -> float:
    """Write a classifier as an ExecuTorch program, and run that once more.

    Returns:
        The largest difference of a logit from torch, relative to the largest logit.

    Raises:
        MissingExtraError: executorch is not installed.
        PocketError: the program and the torch model disagree.
    """
    try:
        exir: Any = import_module("executorch.exir")
        xnnpack: Any = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    except ModuleNotFoundError as error:
        raise MissingExtraError("executorch", "executorch") from error
    outputs = graph_outputs(classifier.task)
    example = _inputs(classifier, SHORTEST + 1)
    length = torch.export.Dim("length", min=SHORTEST, max=classifier.max_length)
    model = Logits(classifier.model, list(example), outputs).eval()
    with quiet(), fused_attention(classifier.model):
        program = torch.export.export(
            model, tuple(example.values()), dynamic_shapes=(tuple({1: length} for _ in example),)
        )
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)
    difference = _largest_difference(classifier, path, model)
    if not difference <= TOLERANCE:
        raise PocketError(
            f"the ExecuTorch program differs from torch by {difference:.2g} of the largest logit, more than "
            f"{TOLERANCE:g}; please report this with the versions of torch and executorch"
        )
    return difference


def program_inputs(classifier: Classifier) -> list[str]:
    """Names of what the program takes, in order."""
    return list(_inputs(classifier, SHORTEST))


def _inputs(classifier: Classifier, length: int) -> dict[str, Tensor]:
    """A text of so many pieces, or of fewer where the model reads no more."""
    words = " ".join(["a"] * length)
    encoded = classifier.encode([(words, words) if classifier.task.pair else (words,)])
    inputs = classifier.inputs(encoded, [0])
    return {name: tensor[:, : max(SHORTEST, length)] for name, tensor in inputs.items()}


@torch.no_grad()
def _largest_difference(classifier: Classifier, path: Path, model: torch.nn.Module) -> float:
    runtime: Any = import_module("executorch.runtime")
    method = runtime.Runtime.get().load_program(path).load_method("forward")
    largest, difference = 1e-6, 0.0
    for length in (SHORTEST, SHORTEST + 5, classifier.max_length):
        inputs = _inputs(classifier, length)
        for wanted, got in zip(model(*inputs.values()), method.execute(list(inputs.values())), strict=True):
            difference = max(difference, float((got - wanted).abs().max()))
            largest = max(largest, float(wanted.abs().max()))
    return difference / largest

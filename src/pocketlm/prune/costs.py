"""What heads and neurons cost here: milliseconds measured on this machine, or bytes.

After the latency tables of ZipLM (Kurtic et al. 2023, https://arxiv.org/abs/2302.04089, section 3.2): every
size of an attention and of an FFN is exported, run and timed once, and a network costs the sum of its parts.
What a count of operations says wrong of a size that the kernels do not like, the table says right.

Deviations: parts are timed inside of a model of two layers, in turn with all others, so that the machine's
drift is the same for all; between the measured sizes the table is linear; the tokenizer is timed, too,
because a text waits for it, and no pruning makes it faster.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from pocketlm.artifact import Artifact, write_json
from pocketlm.data.examples import load_split
from pocketlm.errors import RecipeError
from pocketlm.export.onnx import export
from pocketlm.models.cut import keep_layers
from pocketlm.models.families import encoder_layers, layers_of
from pocketlm.models.load import Classifier, parameters_of, student_of
from pocketlm.models.uneven import check_even, cut_layers
from pocketlm.quantize.int8 import quantize
from pocketlm.runtime.pocket import physical_cores, session, threads_of_one
from pocketlm.stage import Context
from pocketlm.tasks.words import inputs_of
from pocketlm.timing import interleave

TIMED_LAYERS = 2
NEURON_SIZES = 8
ROUNDS = 40


@dataclass(frozen=True)
class Costs:
    """A table of costs, in milliseconds or bytes.

    Args:
        rest: Of all but attention and FFN; in time, with the tokenizer.
        heads: Sizes of an attention that were measured, ascending from 0.
        attention: Cost of an attention of each.
        neurons: Sizes of an FFN that were measured, ascending from 0.
        ffn: Cost of an FFN of each.
    """

    rest: float
    heads: tuple[int, ...]
    attention: tuple[float, ...]
    neurons: tuple[int, ...]
    ffn: tuple[float, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Costs:
        """The inverse of `dataclasses.asdict`, as JSON has it."""
        names = ("heads", "attention", "neurons", "ffn")
        return cls(values["rest"], *(tuple(values[name]) for name in names))

    def total(self, heads: Tensor, neurons: Tensor) -> Tensor:
        """Cost of a network, with a gradient for its sizes.

        Args:
            heads: Of every layer, [layers]; any number between the measured ones.
            neurons: Likewise.
        """
        parts = _between(heads, self.heads, self.attention).sum()
        return self.rest + parts + _between(neurons, self.neurons, self.ffn).sum()


def _between(values: Tensor, known: Sequence[int], costs: Sequence[float]) -> Tensor:
    """Linear interpolation, [n]."""
    places, table = torch.tensor(known, dtype=values.dtype), torch.tensor(costs, dtype=values.dtype)
    right = torch.searchsorted(places, values.detach()).clamp(1, len(places) - 1)
    left = right - 1
    share = (values - places[left]) / (places[right] - places[left])
    return table[left] + share * (table[right] - table[left])


@dataclass(frozen=True)
class MeasureLatency:
    """Time what heads and neurons of the student cost here, once for all budgets of time.

    Args:
        length: Pieces of the text that is timed, the one of train that comes closest; None is their median.
    """

    length: int | None = None
    timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise RecipeError(f"length={self.length} is out of range; it must be 1 or more, or null")

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part `latency`, which `load_latency` reads.

        Raises:
            RecipeError: the layers of the student differ already.
            TeacherError: the layers of this family cannot be cut one by one.
        """
        student = student_of(artifact)
        check_even(student.model)
        texts = load_split(artifact.parts["data"], "train").texts
        lengths = np.asarray(student.encode(texts).lengths)
        closest = np.abs(lengths - (self.length or np.median(lengths))).argmin()
        costs, whole = measure_latency(student, texts[closest])
        path = context.folder / "latency.json"
        write_json(path, {"whole_ms": whole, "costs": asdict(costs)})
        return artifact.with_part("latency", path)


def load_latency(artifact: Artifact) -> tuple[Costs, float]:
    """What `measure_latency` found."""
    found = json.loads(artifact.parts["latency"].read_text(encoding="utf-8"))
    return Costs.of(found["costs"]), found["whole_ms"]


def sizes(count: int, steps: int) -> tuple[int, ...]:
    """0 to `count` in about so many steps, closer together where there is little: 0, 1/64, … 1/4, 1/2, 1."""
    found = {0, count, *(max(1, round(count / 2**power)) for power in range(steps - 2))}
    return tuple(sorted(found))


def measure_latency(classifier: Classifier, text: Sequence[str], int8: bool = True) -> tuple[Costs, float]:
    """Milliseconds from one text to its logits, in the runtime.

    Args:
        classifier: All of its layers are alike.
        text: An example.
        int8: With weights of eight bits, as pockets have them.

    Returns:
        The table, and what the whole classifier takes in float32; both with as many threads as the runtime
        would give to the whole classifier with weights of eight bits.
    """
    config = cast(Any, classifier.model.config)
    heads = tuple(range(config.num_attention_heads + 1))
    neurons = sizes(layers_of(classifier.model)[0].falling.in_features, NEURON_SIZES)
    shapes = {(count, 0) for count in heads} | {(0, count) for count in neurons}
    threads = threads_of_one(parameters_of(classifier.model), physical_cores())
    inputs = classifier.inputs(classifier.encode([text]), [0])
    feed, given = {name: tensor.numpy() for name, tensor in inputs.items()}, inputs_of([text])

    def tokenize(_: int) -> object:
        return classifier.tokenizer.encode_batch(given)

    runs: dict[str, Callable[[int], object]] = {"tokenizer": tokenize}
    with tempfile.TemporaryDirectory() as folder:
        for own, many in sorted(shapes):
            small = thin(classifier, own, many)
            path = Path(folder) / f"{own}-{many}.onnx"
            export(small, path)
            if int8:
                quantize(path, path)
            runs[f"{own}-{many}"] = _run(path, feed, threads)
        whole = Path(folder) / "whole.onnx"
        export(classifier, whole)
        runs["whole"] = _run(whole, feed, threads)
        timed = interleave(runs, 1, ROUNDS, 5)
    base, tokenizer = timed.p50("0-0"), timed.p50("tokenizer")

    def cost(name: str) -> float:
        return max(0.0, (timed.p50(name) - base) / min(TIMED_LAYERS, config.num_hidden_layers))

    attention = [cost(f"{count}-0") for count in heads]
    ffn = [cost(f"0-{count}") for count in neurons]
    table = Costs(tokenizer + base, heads, tuple(_rising(attention)), neurons, tuple(_rising(ffn)))
    return table, tokenizer + timed.p50("whole")


def thin(classifier: Classifier, heads: int, neurons: int) -> Classifier:
    """The first two layers with that many heads and neurons each, and all else."""
    model = copy.deepcopy(classifier.model)
    count = min(TIMED_LAYERS, len(encoder_layers(model)))
    keep_layers(model, range(count))
    cut_layers(model, [range(heads)] * count, [range(neurons)] * count)
    return Classifier(model.eval(), classifier.tokenizer, classifier.task, classifier.max_length)


def _run(path: Path, feed: Mapping[str, np.ndarray], threads: int) -> Callable[[int], object]:
    run = session(path, threads)
    outputs, names = [node.name for node in run.get_outputs()], [node.name for node in run.get_inputs()]
    own = {name: feed[name] for name in names}

    def once(_: int) -> object:
        return run.run(outputs, own)

    return once


def _rising(costs: Sequence[float]) -> list[float]:
    """What is larger costs no less: noise of the clock taken out."""
    return np.maximum.accumulate(np.asarray(costs)).tolist()


def count_bytes(classifier: Classifier) -> Costs:
    """Bytes of the weights, one a weight."""
    layer, model = layers_of(classifier.model)[0], classifier.model
    heads, depth = int(cast(Any, model.config).num_attention_heads), len(layers_of(model))
    attention = sum(
        parameters_of(linear) for linear in (*layer.queries, *layer.keys, layer.value, layer.output)
    )
    ffn = parameters_of(layer.rising) + parameters_of(layer.falling)
    rest = parameters_of(model) - depth * (attention + ffn)
    return Costs(
        float(rest), (0, heads), (0.0, float(attention)), (0, layer.falling.in_features), (0.0, float(ffn))
    )


def check_budget(costs: Costs, budget: float, depth: int, unit: str) -> None:
    """Refuse a budget that not even a network without attention and FFN would hold.

    Raises:
        RecipeError: it is too small.
    """
    none = torch.zeros(depth)
    least = float(costs.total(none, none))
    if budget <= least:
        raise RecipeError(
            f"the budget of {budget:.3g} {unit} is below what is left without any attention and FFN, "
            f"{least:.3g}; give more, or a student with a smaller vocabulary or width"
        )

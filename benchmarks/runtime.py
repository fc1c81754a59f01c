"""The runtime against what it stands on and what the CPU could do; appended to `results/runtime.jsonl`.

    python benchmarks/runtime.py                  points A and B on critics, from the cache or made first
    python benchmarks/runtime.py POCKET …         these pockets, on the demo's texts

At every batch size the pocket is timed in turn with its own graph under `onnxruntime` and `tokenizers`
alone, and with its weights under transformers' pipeline. The floor of a pocket is what its products would
take at the largest rate measured here, or what its weights would take to be read once, whichever is more.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from transformers import pipeline

from pocketlm.data.examples import load_split
from pocketlm.diagnose.speed import operators
from pocketlm.pipeline import cache_folder, run
from pocketlm.recipe import resolve
from pocketlm.runtime.manifest import MODEL, TOKENIZER, read_info
from pocketlm.runtime.pocket import Pocket, Text, load, pad, physical_cores
from pocketlm.tasks.words import inputs_of
from pocketlm.timing import Timings, interleave, throughput
from pocketlm.verbs.shrink import recipe_of, shrink
from run import BENCHES, append, blank, sources_of

BATCHES = (1, 8, 32, 128)
SIDE = 1024
"""Rows and columns of the product that the largest rate is taken from."""
READ_BYTES = 256 * 2**20
ROUNDS = 40

Answers = Callable[[Sequence[Text]], object]


def main() -> None:
    """Measure the pockets named, or the two points."""
    with tempfile.TemporaryDirectory() as folder:
        for name, pocket in pockets(sys.argv[1:], Path(folder)):
            append("runtime", lines(name, pocket))
            print(f"{name}: done", flush=True)


def pockets(named: Sequence[str], folder: Path) -> list[tuple[str, Path]]:
    """What is measured, by name."""
    if named:
        return [(Path(one).name, Path(one)) for one in named]
    found: list[tuple[str, Path]] = []
    for case in BENCHES["distill"]:
        if (case.task, case.teacher) == ("critics", "minilm") and case.row in ("point-a", "point-b"):
            found.append((case.row, shrink(**sources_of(case, folder), seed=0, out=folder / case.row)))
    return found


def lines(name: str, folder: Path) -> list[dict[str, Any]]:
    """A line for every batch size and peer, and one for the floor at batches of 1 and 32."""
    info, threads = read_info(folder), physical_cores()
    artifact, _ = run(resolve(recipe_of(folder)), cache_folder(), until="prepare")
    texts = inputs_of(load_split(artifact.parts["data"], "test").texts)
    pocket = load(folder, threads)
    size = sum(info["files"][part]["size_bytes"] for part in (MODEL, TOKENIZER))
    shared = {
        **blank("runtime"), "task": info["name"], "teacher": name, "metric": "none", "size_bytes": size,
        "threads": threads, "parameters": info.get("parameters"),
        "tokens_p50": int(np.median([len(pieces) for pieces in pocket.encode(texts)])),
    }  # fmt: skip
    peers = {"onnxruntime and tokenizers": plain(folder, threads), "transformers": in_torch(folder, threads)}
    found: list[dict[str, Any]] = []
    for batch in BATCHES:
        for peer, answer in peers.items():
            timed = timings(lambda own, size=batch: pocket.logits(own, size), answer, texts, batch)
            ratio = timed.ratio("peer", "pocket")
            found.append(
                {
                    **shared, "row": f"{name}, batch {batch}", "kind": "peer", "method": peer,
                    "p50_ms": timed.p50("pocket"), "teacher_p50_ms": timed.p50("peer"),
                    "faster_x": ratio.median, "faster_x_spread": [ratio.low, ratio.high],
                }
            )  # fmt: skip
    return [*found, *floors(shared, name, folder, texts)]


def timings(pocket: Answers, peer: Answers, texts: Sequence[Text], batch: int) -> Timings:
    """A pocket and a peer in turn, on the same batches."""
    if batch == 1:
        runs = {"pocket": one_of(pocket, texts), "peer": one_of(peer, texts)}
        return interleave(runs, len(texts), 200, 20)
    batches = {"pocket": some_of(pocket, texts), "peer": some_of(peer, texts)}
    return throughput(batches, len(texts), batch, ROUNDS).timings


def one_of(answer: Answers, texts: Sequence[Text]) -> Callable[[int], object]:
    """A callable that answers the text of an index."""
    return lambda index: answer([texts[index]])


def some_of(answer: Answers, texts: Sequence[Text]) -> Callable[[Sequence[int]], object]:
    """A callable that answers the texts of some indices."""
    return lambda rows: answer([texts[row] for row in rows])


def plain(folder: Path, threads: int) -> Answers:
    """The graph as anyone would run it who has read the manuals of the two libraries."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(read_info(folder)["max_length"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
    inputs = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    names = {node.name: inputs[node.name] for node in session.get_inputs()}

    def answer(texts: Sequence[Text]) -> object:
        pieces = tokenizer.encode_batch(list(texts))
        feed = {name: np.array([getattr(one, part) for one in pieces]) for name, part in names.items()}
        return session.run(["logits"], feed)

    return answer


def in_torch(folder: Path, threads: int) -> Answers:
    """The pocket's weights under transformers' pipeline."""
    torch.set_num_threads(threads)
    run: Any = pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.float32)
    return lambda texts: run(list(texts), batch_size=len(texts), truncation=True)


def floors(shared: Mapping[str, Any], name: str, folder: Path, texts: Sequence[Text]) -> list[dict[str, Any]]:
    """How far one thread is from what it could do, at batches of 1 and 32, and where the time goes."""
    pocket, graph = load(folder, 1), opened(folder / MODEL)
    rate, bandwidth = largest_rate(integers(graph)), read_rate()
    shares = operators(pocket, folder / MODEL, texts)
    found: list[dict[str, Any]] = []
    for batch in (1, 32):
        batches = [texts[start : start + batch] for start in range(0, len(texts) - batch, batch)][:ROUNDS]
        answers = {"pocket": lambda index, of=batches: pocket.logits(of[index], len(of[index]))}
        timed = interleave(answers, len(batches), len(batches), 5)
        products = float(np.median([multiplications(graph, pocket, own) for own in batches]))
        arithmetic, memory = 1e3 * products / rate, 1e3 * weight_bytes(graph) / bandwidth
        took, floor = timed.p50("pocket"), max(arithmetic, memory)
        found.append(
            {
                **shared, "row": f"{name}, floor, batch {batch}", "kind": "control", "method": "one thread",
                "threads": 1, "p50_ms": took, "faster_x": took / floor,
                "other_metrics": {
                    "arithmetic_ms": arithmetic, "memory_ms": memory, "multiplications_per_s": rate,
                    "bytes_per_s": bandwidth,
                    **{f"share_{key}": share for key, share in [*shares.items()][:8]},
                },
            }
        )  # fmt: skip
    return found


def opened(path: Path) -> onnx.ModelProto:
    """A graph as ONNX Runtime computes it: weights that are only stored in 8 bits are multiplied out."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / MODEL)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def integers(graph: onnx.ModelProto) -> bool:
    """True where products are of integers."""
    return any(node.op_type == "MatMulInteger" for node in graph.graph.node)


def multiplications(graph: onnx.ModelProto, pocket: Pocket, texts: Sequence[Text]) -> float:
    """Multiplications of a batch's products, padding in; those of attention between positions, too."""
    batch = pad(pocket.encode(texts), 0)["input_ids"]
    rows, length = batch.shape
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    behind = {
        output
        for node in graph.graph.node
        if node.op_type == "Gather" and "first" in node.output[0]
        for output in node.output
    }
    total, width = 0.0, 0
    for node in graph.graph.node:
        # Behind the layer that is read at one position, everything is of one position.
        if behind & {*node.input}:
            behind |= {*node.output}
        weight = constants.get(node.input[1]) if node.op_type in ("MatMul", "Gemm", "MatMulInteger") else None
        if weight is not None:
            total += np.prod(weight.dims) * rows * (1 if behind & {*node.input} else length)
            width = max(width, min(weight.dims))
        elif node.op_type in ("Attention", "MatMul"):  # one of them fused, or two between positions
            times = 2 if node.op_type == "Attention" else 1
            total += times * rows * length * width * (1 if behind & {*node.input} else length)
    return float(total)


def weight_bytes(graph: onnx.ModelProto) -> int:
    """Bytes of the weights that every batch reads: all but the tables that are looked up."""
    looked_up = {node.input[0] for node in graph.graph.node if node.op_type == "Gather"}
    return sum(
        numpy_helper.to_array(tensor).nbytes
        for tensor in graph.graph.initializer
        if tensor.name not in looked_up
    )


def largest_rate(of_integers: bool) -> float:
    """Multiplications a second of a large product in ONNX Runtime, on one thread."""
    kinds = (TensorProto.UINT8, TensorProto.INT8) if of_integers else (TensorProto.FLOAT, TensorProto.FLOAT)
    out = TensorProto.INT32 if of_integers else TensorProto.FLOAT
    weight = np.ones((SIDE, SIDE), dtype=np.int8 if of_integers else np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if of_integers else "MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kinds[0], [SIDE, SIDE])],
        [helper.make_tensor_value_info("y", out, [SIDE, SIDE])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": np.ones((SIDE, SIDE), dtype=np.uint8 if of_integers else np.float32)}
    timed = interleave({"product": lambda _: session.run(None, feed)}, 1, ROUNDS, 5)
    return SIDE**3 / (min(timed.ms["product"]) / 1e3)


def read_rate() -> float:
    """Bytes a second that one thread reads from memory."""
    block = np.ones(READ_BYTES // 8)
    timed = interleave({"sum": lambda _: block.sum()}, 1, ROUNDS // 4, 2)
    return READ_BYTES / (min(timed.ms["sum"]) / 1e3)


if __name__ == "__main__":
    sys.exit(main())

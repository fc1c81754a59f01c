"""Where does the time of one text go, and why is a pocket not faster?"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from pocketlm.diagnose.finding import Finding
from pocketlm.runtime.pocket import SLOW_FUSIONS, Pocket, Text, pad
from pocketlm.timing import interleave

ROUNDS, WARMUP = 100, 20
PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "DynamicQuantizeMatMul",
                      "MatMulIntegerToFloat", "MatMulNBits", "Attention"})  # fmt: skip
MUCH_AROUND = 0.5
MUCH_TOKENIZING = 0.3


@dataclass(frozen=True)
class Times:
    """Where the time of one text goes.

    Args:
        text_ms: From text to logits, median.
        float_ms: The same with the graph before quantization, timed in turn.
        tokenize_ms: Of it, what the tokenizer takes.
        operators: Share of the graph's time by operator, most first.
    """

    text_ms: float
    float_ms: float
    tokenize_ms: float
    operators: dict[str, float]


def times(pocket: Pocket, graph: Path, floats: Pocket, texts: Sequence[Text]) -> Times:
    """Time a pocket on single texts, with one thread.

    Args:
        pocket: The pocket, of one thread.
        graph: Its `model.onnx`.
        floats: The same before quantization.
        texts: Real inputs.
    """
    taken = interleave(
        {
            "pocket": lambda index: pocket.logits([texts[index]]),
            "float": lambda index: floats.logits([texts[index]]),
            "tokenize": lambda index: pocket.encode([texts[index]]),
        },
        len(texts),
        ROUNDS,
        WARMUP,
    )
    return Times(
        taken.p50("pocket"), taken.p50("float"), taken.p50("tokenize"), operators(pocket, graph, texts)
    )


def of_times(taken: Times, stage: str = "int8") -> list[Finding]:
    """Why a pocket is not faster, given the stage that quantized its graph."""
    found: list[Finding] = []
    if taken.text_ms > taken.float_ms * 1.05:
        text = (
            f"with 8 bits a text takes {taken.text_ms:.2f} ms and in float32 {taken.float_ms:.2f}: this CPU "
            "is slow at products of integers, or they are too small; let them compute in float32, from "
            "weights of 8 bits" + ("" if stage == "int8" else f", by the stage int8 in the place of {stage}")
        )
        patch = {"int8": {"compute": "float32"}} if stage == "int8" else None
        found.append(Finding("speed", False, text, patch))
    if taken.tokenize_ms > MUCH_TOKENIZING * taken.text_ms:
        text = (
            f"{taken.tokenize_ms / taken.text_ms:.0%} of the time of a text is its tokenizer's, which no "
            "smaller model makes less"
        )
        found.append(Finding("speed", False, text))
    products = sum(share for name, share in taken.operators.items() if name in PRODUCTS)
    if products < 1 - MUCH_AROUND:
        most = [f"{name} {share:.0%}" for name, share in taken.operators.items() if name not in PRODUCTS][:3]
        text = (
            f"only {products:.0%} of the graph's time is spent in products, and most of the rest in "
            f"{', '.join(most)}: the model is so narrow that only fewer layers make it faster"
        )
        found.append(Finding("speed", False, text))
    return found


def operators(pocket: Pocket, graph: Path, texts: Sequence[Text]) -> dict[str, float]:
    """Share of a graph's own time by operator, most first, on single texts and one thread."""
    ort: Any = onnxruntime
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.log_severity_level = 3
        session = ort.InferenceSession(
            str(graph),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(SLOW_FUSIONS),
        )
        for text in [*texts][:ROUNDS]:
            padded = pad(pocket.encode([text]), 0)
            session.run(None, {node.name: padded[node.name] for node in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return {name: count / max(spent.total(), 1) for name, count in spent.most_common()}

"""Prune SmolLM2-135M without training and append its perplexities to `results/prune.jsonl`.

    python benchmarks/decoders.py                 magnitude, Wanda and SparseGPT, half of the weights and 2:4
    python benchmarks/decoders.py --samples 16    calibrated on less

Calibrated on WikiText-2's valid split (its train split is not among the data), measured on the first
50,000 pieces of test: paragraphs, two line breaks between them, in windows of 512 pieces.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketlm.progress import Bars
from pocketlm.sources import SMOLLM2
from pocketlm.verbs.prune import OF_DECODERS, prune_decoder, pruned_decoder
from run import append, blank, data_folder, recorded

PATTERNS = (None, "2:4")
DENSE = "decoder: dense"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prune in every way and append what is not in the results yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=64, help="windows that are calibrated on")
    given = parser.parse_args(arguments)
    done = {line["row"] for line in recorded("prune")}
    for pattern in PATTERNS:
        for method in OF_DECODERS:
            row = f"decoder: {method}, {pattern or '50%'}, {given.samples} windows"
            if row not in done:
                append("prune", lines(row, method, pruned(method, pattern, given.samples), DENSE not in done))
                done |= {row, DENSE}


def pruned(method: str, pattern: str | None, samples: int) -> Mapping[str, Any]:
    """What one way of pruning makes of the model."""
    texts = data_folder() / "wikitext2"
    fields = (("samples", samples), ("pattern", pattern))
    with tempfile.TemporaryDirectory() as folder:
        made = prune_decoder(
            SMOLLM2, str(texts / "valid.txt"), held_out=str(texts / "test.txt"), method=method,
            overrides=[("prune_decoder", name, value) for name, value in fields],
            out=Path(folder) / "pruned", progress=Bars(),
        )  # fmt: skip
        return pruned_decoder(made)


def lines(row: str, method: str, found: Mapping[str, Any], whole: bool) -> list[dict[str, Any]]:
    """Lines of the results: of the model as it came, if asked for, and of what was made of it.

    Magnitude is what the other methods have to beat.
    """
    shared = {
        **blank("prune"), "teacher": "smollm2-135m-instruct", "task": "wikitext2", "metric": "perplexity",
        "seed": 0, "sparsity_of": "embeddings out", "recipe_sha256": found["recipe_sha256"],
    }  # fmt: skip
    before = {
        "row": DENSE, "kind": "teacher", "method": "dense", "sparsity": 0.0,
        "score": found["perplexity_before"],
    }  # fmt: skip
    after = {
        "row": row, "kind": "control" if method == "magnitude" else "pocket", "method": method,
        "sparsity": found["sparsity"], "score": found["perplexity"],
        "teacher_score": found["perplexity_before"],
    }  # fmt: skip
    return [{**shared, **values} for values in ((before, after) if whole else (after,))]


if __name__ == "__main__":
    sys.exit(main())

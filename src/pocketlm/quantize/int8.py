"""Eight-bit weights: products in integers or in floats, whichever is faster; tables by rows.

Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), section 2.1: w ≈ scale · (q - zero_point).

Deviations: weights are symmetric (zero_point 0), one scale an output channel, and use 7 of the 8
bits: on a CPU with AVX2 and no VNNI, the product of an unsigned 8-bit activation and a signed 8-bit
weight is summed in 16 bits, which 2 · 255 · 127 overflows and 2 · 255 · 64 does not. Activations are
quantized as they come (one scale a tensor), so no calibration is needed. Embedding rows have a scale
each and are multiplied out after the look-up. Where a CPU is slower at products of integers than of floats,
weights are only stored in 8 bits, all of them used, and multiplied out when the graph is opened.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import onnx
from onnxruntime.quantization import (
    QuantType,
    quantize_dynamic,  # pyright: ignore[reportUnknownVariableType]
)

from pocketlm.artifact import Artifact
from pocketlm.quantize.control import Judge, check_tolerance, controlled, named
from pocketlm.quantize.stored import quantize_embeddings, store_products
from pocketlm.runtime.pocket import Pocket, Text
from pocketlm.stage import Context
from pocketlm.timing import interleave

Compute = Literal["auto", "int8", "float32"]

TIMED_ROUNDS = 100
WARMUP = 10


@dataclass(frozen=True)
class QuantizeInt8:
    """Quantize the exported graph.

    Args:
        matmuls: Quantize the weights of matrix products.
        embeddings: Quantize embedding tables; they compute in float32 after the look-up.
        compute: Of products: `int8`, or `float32` from weights that are stored in 8 bits; `auto` times both
            on texts of valid, and takes the integers unless they are slower.
        tolerance: What may be lost of the metric on valid, such as 0.005; the products and tables that 8 bits
            hurt most compute in float32 until no more is lost. None does not look.
        keep: Products and tables that stay in float32 in any case, as `pocketlm doctor` names them.
    """

    matmuls: bool = True
    embeddings: bool = True
    tolerance: float | None = 0.005
    compute: Compute = "auto"
    keep: tuple[str, ...] = ()
    timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `onnx`; adds the figure `quantization`.

        With a tolerance, it has the scores on valid and the parts that were kept in float32; with `auto`,
        the median time of a text of both kinds.

        Raises:
            RecipeError: `keep` names a part that the graph does not have.
        """
        path = context.folder / "model.onnx"
        source, parts = named(artifact, context.folder, self.keep, self.matmuls, self.embeddings)
        compute, found = self._chosen(source, path, artifact)

        def make(path: Path, floats: Sequence[str]) -> None:
            quantize(source, path, self.matmuls, self.embeddings, [*self.keep, *floats], compute)

        found |= controlled(source, path, make, parts, artifact, self.tolerance if parts else None)
        source.unlink()
        looked_up = {node.input[0] for node in onnx.load(path).graph.node if node.op_type == "Gather"}
        tables = sum(name.endswith("_codes") for name in looked_up)
        return artifact.with_part("onnx", path).with_figures(
            quantization={
                "bits": 8, "matmuls": self.matmuls, "compute": compute, "embedding_tables": tables, **found
            }
        )  # fmt: skip

    def _chosen(self, source: Path, path: Path, artifact: Artifact) -> tuple[Compute, dict[str, Any]]:
        """What products are computed in, and the times that decided it."""
        if not self.matmuls or self.compute != "auto":
            return "float32" if not self.matmuls else self.compute, {}
        judge, runs = Judge.of(artifact), dict[str, Callable[[int], object]]()
        texts = judge.inputs
        for kind in ("int8", "float32"):
            quantize(source, path, self.matmuls, self.embeddings, self.keep, cast(Compute, kind))
            runs[kind] = partial(_answered, judge.opened(path, 1), texts)
        taken = interleave(runs, len(texts), TIMED_ROUNDS, WARMUP)
        slower = taken.ratio("int8", "float32").low > 1
        return "float32" if slower else "int8", {f"{kind}_ms": taken.p50(kind) for kind in runs}


def _answered(pocket: Pocket, texts: Sequence[Text], index: int) -> object:
    return pocket.logits([texts[index]])


def quantize(
    source: Path,
    target: Path,
    matmuls: bool = True,
    embeddings: bool = True,
    floats: Sequence[str] = (),
    compute: Compute = "int8",
) -> None:
    """Write a graph with weights of eight bits.

    Args:
        source: The graph in float32.
        target: Where the other goes, in a folder that can be written.
        matmuls: See `QuantizeInt8`, as the next.
        embeddings: See there.
        floats: Products and tables that stay in float32, by name.
        compute: Of products, `int8` or `float32`.
    """
    model = onnx.load(source)
    if embeddings:
        quantize_embeddings(model, floats)
    if matmuls and compute == "int8":
        staged = target.parent / "embeddings.onnx"
        onnx.save(model, staged)
        quantize_matmuls(staged, target, floats)
        staged.unlink()
        return
    if matmuls:
        store_products(model, floats)
    onnx.save(model, target)


def quantize_matmuls(source: Path, target: Path, floats: Sequence[str] = ()) -> None:
    """Dynamic 8-bit matrix products, one scale an output channel, 7 bits used (see the module).

    Args:
        source: The graph in float32.
        target: Where the other goes.
        floats: Nodes that stay as they are, by name.
    """
    # On the way onnx writes the graph once more, without looking whether the disk takes all of it.
    if shutil.disk_usage(target.parent).free < 2 * source.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a step that our graphs do not need
    try:
        quantize_dynamic(
            cast(Any, source),
            cast(Any, target),
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=[*floats],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    finally:
        logging.disable(level)

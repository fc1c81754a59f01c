"""Make one file to download of a pocket's folder: see `pocketlm.runtime.coded`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from pocketlm.runtime.coded import MOST_VALUES, write_coded

SMALLEST = 1024
KINDS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT)


def code_pocket(path: Path, info: Mapping[str, Any], graph: Path, tokenizer: Path) -> None:
    """Write `model.pocket`.

    Args:
        path: Where.
        info: Of `pocket.json`, what the runtime needs.
        graph: ONNX; its tensors of few values are entropy-coded, all else is packed as it is.
        tokenizer: `tokenizer.json`.
    """
    model, tensors = without_tensors(onnx.load(graph))
    parts = {
        "pocket.json": json.dumps(info, ensure_ascii=False, separators=(",", ":")).encode(),
        "tokenizer.json": tokenizer.read_bytes(),
        "model.onnx": model.SerializeToString(),
    }
    write_coded(path, parts, tensors)


def without_tensors(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Take the large tensors of few values out of a graph, in place; what is left names them as external."""
    tensors: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in KINDS and np.prod(tensor.dims) >= SMALLEST:
            values = numpy_helper.to_array(tensor)
            if len(np.unique(values)) <= MOST_VALUES:
                tensors[tensor.name] = values
                tensor.raw_data = b""  # asked for by the next line
                external_data_helper.set_external_data(tensor, location="model.pocket")
                for field in ("raw_data", "int32_data", "float_data"):
                    tensor.ClearField(field)
    return model, tensors

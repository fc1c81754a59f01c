"""The verb `prune`: an encoder on a task, a language model on plain text, and what cannot be pruned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

from pocketlm.cli import main
from pocketlm.errors import InputError, PocketError, RecipeError, SourceError
from pocketlm.models.decoder import load_decoder, perplexity
from pocketlm.verbs.prune import prune_decoder, prune_student, pruned_decoder
from pocketlm.verbs.shrink import training_of
from tests.conftest import Tiny
from tests.easy import QUICK
from tests.prune.test_decoder import decoder_that_has_read
from tests.tiny import sentences

LENGTH = 24
SHORT: tuple[Any, ...] = (
    ("prune_decoder", "length", LENGTH),
    ("perplexity", "length", LENGTH),
    ("perplexity", "pieces", 240),
)
TEXTS = list(dict.fromkeys(sentences(800, longest=12)))[:400]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("given")
    decoder_that_has_read(TEXTS).save(folder / "writer")
    (folder / "corpus.txt").write_text("\n".join(TEXTS))
    return {"model": str(folder / "writer"), "corpus": str(folder / "corpus.txt")}


def test_a_writer_is_pruned_and_measured_on_text_held_out(given: dict[str, Any], tmp_path: Path) -> None:
    folder = prune_decoder(**given, overrides=SHORT, out=tmp_path / "half")
    told = pruned_decoder(folder)
    assert told["sparsity"] == pytest.approx(0.5, abs=0.01) and told["perplexity_pieces"] == 240
    for path, name in ((folder, "perplexity"), (Path(given["model"]), "perplexity_before")):
        model = load_decoder(path)
        ids = model.ids(TEXTS[-40:])[:240]  # a tenth of 400
        assert told[name] == pytest.approx(perplexity(model, ids, LENGTH), rel=1e-4)
    assert told["perplexity"] > told["perplexity_before"]


def test_the_text_to_measure_on_may_be_a_file(given: dict[str, Any], tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("\n".join(TEXTS[:90]))
    folder = prune_decoder(
        **given, method="wanda", held_out=str(held_out), overrides=SHORT, out=tmp_path / "half"
    )
    ids = load_decoder(folder).ids(TEXTS[:90])[:240]
    assert pruned_decoder(folder)["perplexity"] == pytest.approx(
        perplexity(load_decoder(folder), ids, LENGTH), rel=1e-4
    )


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"method": "obd"}, InputError, r"'obd' does not prune models that write; allowed: magnitude, wanda"),
        ({"overrides": [("prune_decoder", "sparsity", 1.0)]}, RecipeError, r"sparsity=1\.0 is out of range"),
        ({"overrides": [("prune_decoder", "pattern", "24")]}, RecipeError, "is not of the form 2:4"),
        ({"overrides": [("perplexity", "length", 1)]}, RecipeError, "length=1 and pieces=50000"),
        ({"overrides": [("distill", "epochs", 1)]}, RecipeError, "unknown key 'distill'"),
        ({"model": "nowhere/model.gguf"}, SourceError, "no such file or folder"),
    ],
)
def test_what_is_asked_for_is_checked_first(
    given: dict[str, Any], tmp_path: Path, changed: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        prune_decoder(**cast(Any, {**given, "out": tmp_path / "out", **changed}))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_gguf_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(SourceError, match=r"model\.gguf is not GGUF"):
        prune_decoder(str(tmp_path / "model.gguf"), given["corpus"])
    with pytest.raises(PocketError, match="is not a pruned language model"):
        pruned_decoder(tmp_path)


def test_the_command_prunes_a_writer(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for stage, key, value in SHORT for part in ("--set", f"{stage}.{key}={value}")]
    with pytest.raises(SystemExit) as ended:
        main([
            "prune", given["model"], "--corpus", given["corpus"], "--method", "magnitude", "--pattern", "2:4",
            "--out", str(tmp_path / "out"), *sets,
        ])  # fmt: skip
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and printed.startswith("perplexity: ")
    assert pruned_decoder(tmp_path / "out")["sparsity"] == pytest.approx(0.5)


def sparse(folder: Path) -> float:
    """Share of zeros in the layers' matrices."""
    weights = load_file(folder / "model.safetensors")
    maps = [weight for name, weight in weights.items() if "encoder.layer" in name and weight.dim() == 2]
    return float(torch.cat([weight.flatten() == 0 for weight in maps]).float().mean())


@pytest.mark.parametrize("method", ["magnitude", "movement", "obd"])
def test_an_encoder_is_pruned_on_a_task(tiny: Tiny, tmp_path: Path, method: str) -> None:
    fast = tuple(one for one in QUICK if one[0] in ("prepare", "finetune"))
    training = {"epochs": 1, "learning_rate": 3e-3, "hidden": 0.0}
    folder = prune_student(
        str(tiny.teacher), str(tiny.data), method=method, out=tmp_path / "out",
        overrides=[*fast, (method, "training", training), (method, "sparsity", 0.4)],
    )  # fmt: skip
    told = training_of(folder)
    assert told["pruned"]["sparsity"] == pytest.approx(0.4, abs=0.01)
    assert sparse(folder) == pytest.approx(0.4, abs=0.02)
    assert 0 < told["valid_score"] <= 1


def test_the_command_prunes_an_encoder(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = [one for one in QUICK if one[0] in ("prepare", "finetune")]
    sets = [part for stage, key, value in fast for part in ("--set", f"{stage}.{key}={json.dumps(value)}")]
    with pytest.raises(SystemExit) as ended:
        main([
            "prune", str(tiny.teacher), "--data", str(tiny.data), "--sparsity", "0.5", "--out",
            str(tmp_path / "out"), "--set", "magnitude.training={epochs: 1, hidden: 0.0}", *sets,
        ])  # fmt: skip
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and "on valid: " in printed
    assert sparse(tmp_path / "out") == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--method", "wanda"], "method 'wanda' does not prune encoders on a task"),
        (["--held-out", "x.txt"], "--held-out goes with --corpus"),
        (["--corpus", "x.txt"], "--corpus goes with a model that writes"),
        (["--method", "structured", "--sparsity", "0.5"], "unknown key 'sparsity'"),
    ],
)
def test_what_the_command_cannot_do_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prune", *arguments])
    assert ended.value.code == 2 and told in capsys.readouterr().err

"""`shrink` from the user's side: own data, own teachers, output folders, and being killed anywhere."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketlm import distill_student, load, shrink
from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.errors import InputError, RecipeError, StorageError, TeacherError
from pocketlm.export.pack import described_files
from pocketlm.folders import check_output
from pocketlm.measure import compare, controls
from pocketlm.pipeline import run
from pocketlm.recipe import resolve
from pocketlm.runtime.manifest import read_info
from pocketlm.tasks.task import Task
from pocketlm.verbs.shrink import DEMO_NAME, pocket_name, resolved_recipe, training_of
from tests.conftest import Forked, Made, Tiny
from tests.easy import LABELS, QUICK, sentence, sentence_rows, settings, write_tsv

WEIGHTS = ("model.onnx", "model.safetensors", "config.json", "tokenizer.json")


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def prepared(teacher: Path, data: Path, cache: Path, until: str = "prepare", **options: Any) -> Artifact:
    """The artifact of a run that stops after a stage."""
    overrides = [*QUICK, *options.pop("overrides", ())]
    return run(resolved_recipe(str(teacher), str(data), overrides=overrides, **options), cache, until=until)[
        0
    ]


# Own data

Writer = Callable[[Path, Sequence[dict[str, Any]]], None]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


WRITERS: dict[str, Writer] = {
    "tsv": write_tsv, "csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet
}  # fmt: skip


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("form", WRITERS)
def test_every_kind_of_file_gives_the_same_splits(
    form: str, packed: str, made: Made, tiny: Tiny, tmp_path: Path
) -> None:
    if form == "parquet" and packed:
        pytest.skip("Parquet packs itself")
    path = tmp_path / f"moods.{form}"
    WRITERS[form](path, sentence_rows())
    if packed:
        pack = {".gz": gzip.compress, ".bz2": bz2.compress}[packed]
        path = Path(shutil.move(path, f"{path}{packed}"))
        path.write_bytes(pack(path.read_bytes()))
    artifact = prepared(tiny.teacher, path, tmp_path / "cache")
    assert artifact.task.labels == LABELS
    for split in ("train", "valid", "test"):
        assert load_split(artifact.parts["data"], split) == load_split(made.part("data"), split)


@pytest.mark.parametrize("way", ["folder", "options"])
def test_given_splits_are_taken_as_they_are(way: str, tiny: Tiny, tmp_path: Path) -> None:
    parts = {"train": sentence_rows(90), "dev": sentence_rows(30, seed=5), "test": sentence_rows(33, seed=6)}
    paths = {name: write_tsv(tmp_path / "set" / f"{name}.tsv", rows) for name, rows in parts.items()}
    options = {"valid": str(paths["dev"]), "test": str(paths["test"])} if way == "options" else {}
    data = paths["train"] if options else tmp_path / "set"
    artifact = prepared(tiny.teacher, data, tmp_path / "cache", **options)
    for split, rows in zip(("train", "valid", "test"), parts.values(), strict=True):
        texts = [(row["text"],) for row in rows]
        assert load_split(artifact.parts["data"], split).texts == texts


def test_labels_keep_their_names_and_order_through_every_step(made: Made) -> None:
    config = json.loads((made.pocket / "config.json").read_text(encoding="utf-8"))
    assert [config["id2label"][str(index)] for index in range(3)] == list(LABELS)
    assert config["label2id"] == {label: index for index, label in enumerate(LABELS)}
    assert made.info["task"]["labels"] == list(LABELS)
    assert made.info["ledger"]["confusion"]["labels"] == list(LABELS)
    pocket = load(made.pocket, threads=1)
    assert pocket.labels == LABELS
    chance = random.Random(9)
    texts = [(sentence(chance, label), label) for label in LABELS for _ in range(20)]
    predictions = pocket.predict([text for text, _ in texts])
    assert all(list(prediction.scores or ()) == list(LABELS) for prediction in predictions)
    right = sum(p.label == label for p, (_, label) in zip(predictions, texts, strict=True))
    assert right >= 54, f"{right} of 60"


def test_a_pocket_of_pairs_reads_its_second_text(pocket_of_pairs: Path) -> None:
    pocket = load(pocket_of_pairs, threads=1)
    assert pocket.task == Task("classification", pair=True, labels=("no", "yes"))
    said = pocket.predict([("the film in the city", f"a {cue} {cue}") for cue in ("dull", "radiant")])
    assert [prediction.label for prediction in said] == ["no", "yes"]


def test_a_pocket_of_numbers_gives_values_on_the_scale_of_the_labels(made_of_numbers: Made) -> None:
    info = made_of_numbers.info
    assert info["task"] == {"kind": "regression", "pair": True, "labels": []}
    ledger = info["ledger"]
    assert ledger["metric"] == "pearson" and ledger["confusion"] is None
    assert [row["kind"] for row in ledger["rows"]] == ["teacher", "pocket", "control", "control", "control"]
    assert all("spearman" in row["other_metrics"] for row in ledger["rows"])
    assert ledger["rows"][1]["score"] > 0.8
    texts = [("the film", " ".join(["radiant"] * n + ["dull"] * (4 - n) + ["the"])) for n in range(5)]
    values = [prediction.score for prediction in load(made_of_numbers.pocket, threads=1).predict(texts)]
    assert values == sorted(values)
    assert -0.5 < values[0] < 2 and 3 < values[-1] < 5.5
    config = json.loads((made_of_numbers.pocket / "config.json").read_text())
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1


def test_the_pocket_is_a_model_for_transformers(made: Made) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(made.pocket, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(made.pocket)
    texts = [row["text"] for row in sentence_rows(60, seed=8)]
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()
    pocket = load(made.pocket, threads=1).logits(texts)
    assert (logits.argmax(axis=1) == pocket.argmax(axis=1)).mean() >= 0.98
    assert np.abs(logits - pocket).max() < 0.1 * np.abs(logits).max()


# What a pocket says of itself


def test_the_pocket_lists_every_file_as_it_is(made: Made) -> None:
    files = made.info["files"]
    assert files == described_files(made.pocket)
    names = {path.name for path in made.pocket.iterdir()}
    assert names == {*files, "pocket.json"} and {*WEIGHTS, "README.md", "report.html"} <= names
    for name, entry in files.items():
        assert entry["size_bytes"] == (made.pocket / name).stat().st_size
        assert entry["sha256"] == hashlib.sha256((made.pocket / name).read_bytes()).hexdigest()


def test_the_pocket_says_where_it_comes_from(made: Made, tiny: Tiny) -> None:
    info = made.info
    assert info["name"] == "moods"
    assert info["teacher"] == {"name": "teacher", "source": str(tiny.teacher), "licence": "mit"}
    assert info["data"]["source"] == str(tiny.data) and info["data"]["licence"] is None
    assert info["data"]["rows"] == {"train": 320, "valid": 40, "test": 40}
    assert info["shape"]["layers"] == 2 and info["shape"]["teacher_layers"] == [1, 3]
    assert info["ledger"]["seed"] == 0


def test_the_report_asks_nothing_of_the_network(made: Made) -> None:
    page = (made.pocket / "report.html").read_text(encoding="utf-8")
    assert "moods" in page
    for outward in ("src=", "@import", "url(", "fetch(", "XMLHttpRequest", "<link", "<iframe"):
        assert outward not in page.replace('<link rel="icon" href="data:,">', ""), outward
    assert 'href="http' not in page


# Output folders


def aside(folder: Path) -> list[str]:
    """What lies beside a pocket's folder and was not meant to stay."""
    return sorted(path.name for path in folder.parent.iterdir() if path.name.startswith("."))


@pytest.fixture
def quick(made: Made, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`shrink` with everything in the cache but, where `changed`, the last stage."""
    monkeypatch.setenv("POCKETLM_CACHE", str(made.cache))
    monkeypatch.setattr(compare, "REST_SECONDS", 0.0)
    monkeypatch.setattr(compare, "request_energy", lambda run, requests: None)
    monkeypatch.setattr(compare, "peak_ram_bytes", lambda folder, texts, threads: None)
    monkeypatch.setattr(compare, "start_ms", lambda folder, text, threads: None)

    def shrink_again(out: Path | None, changed: bool = False, **options: Any) -> Path:
        overrides = [*QUICK, *([("measure", "rounds", 5)] if changed else [])]
        return shrink(str(tiny.teacher), str(tiny.data), overrides=overrides, out=out, threads=1, **options)

    return shrink_again


def test_the_same_recipe_refreshes_a_pocket(quick: Callable[..., Path], tmp_path: Path) -> None:
    out = quick(tmp_path / "out")
    first = hashes(out)
    (out / "report.html").unlink()
    (out / "model.onnx").write_bytes(b"spoilt")
    (out / "note.txt").write_text("mine")
    assert quick(out) == out
    assert {name: digest for name, digest in hashes(out).items() if name in WEIGHTS} == {
        name: digest for name, digest in first.items() if name in WEIGHTS
    }
    assert hashes(out).keys() == first.keys()
    assert aside(out) == []


def test_the_pocket_of_another_recipe_is_left_alone(quick: Callable[..., Path], tmp_path: Path) -> None:
    out = quick(tmp_path / "out")
    before = hashes(out)
    with pytest.raises(InputError, match=r"another recipe made; name another folder .* --overwrite"):
        quick(out, changed=True)
    assert hashes(out) == before and aside(out) == []
    quick(out, changed=True, overwrite=True)
    assert hashes(out)["pocket.json"] != before["pocket.json"]
    assert "rounds: 5" in json.loads((out / "pocket.json").read_text())["recipe"]
    assert aside(out) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"pocket.json": "{}"}, {"pocket.json": "broken"}])
def test_a_folder_that_is_no_pocket_is_left_alone(
    content: dict[str, str], overwrite: bool, quick: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, text in content.items():
        (out / name).write_text(text)
    with pytest.raises(InputError, match="is not a pocket, so it is left alone"):
        quick(out, overwrite=overwrite)
    assert {path.name: path.read_text() for path in out.iterdir()} == content and aside(out) == []


def test_a_file_in_the_place_of_a_pocket_is_left_alone(quick: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="left alone"):
        quick(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_an_empty_folder_is_used(quick: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert load(quick(tmp_path / "out")).labels == LABELS


@pytest.mark.parametrize("out", [".", "..", "a/.."])
def test_a_folder_without_a_name_is_refused(
    out: str, quick: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="has no name of its own"):
        quick(Path(out))
    assert list((tmp_path / "empty").iterdir()) == []


def test_without_a_name_the_pocket_is_called_after_its_data(
    quick: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert quick(None) == Path("pockets/moods")
    assert (tmp_path / "pockets" / "moods" / "pocket.json").exists()


# The student alone


@pytest.fixture
def student(made: Made, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`distill_student` with everything in the cache; `more` changes the recipe behind the student."""
    monkeypatch.setenv("POCKETLM_CACHE", str(made.cache))

    def distill_again(out: Path | None, *more: Any, **options: Any) -> Path:
        return distill_student(
            str(tiny.teacher), str(tiny.data), overrides=[*QUICK, *more], out=out, **options
        )

    return distill_again


def test_a_student_is_what_the_pocket_was_before_its_export(
    student: Callable[..., Path], made: Made, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = student(tmp_path / "out")
    trained = made.artifact("Calibrate")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert tuple(model.config.id2label[place] for place in range(len(LABELS))) == LABELS
    assert hashes(folder)["model.safetensors"] == hashes(trained.parts["student"])["model.safetensors"]
    training = training_of(folder)
    assert training["valid_score"] == trained.figures["distil"]["valid_score"]
    assert training["teacher_valid_score"] == trained.figures["teacher"]["valid_score"]
    assert not any("test" in name for name in training) and aside(folder) == []


def test_a_student_is_made_without_looking_at_test(
    student: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in (compare, controls):
        monkeypatch.setattr(stage, "load_split", lambda *arguments: pytest.fail("a split was measured"))
    # Other fields than the cache has: these two stages would run if they were reached.
    folder = student(tmp_path / "out", ("controls", "epochs", 1), ("measure", "rounds", 6))
    assert training_of(folder)["history"][-1].startswith("Calibrate(")


def test_the_student_of_another_recipe_is_left_alone(student: Callable[..., Path], tmp_path: Path) -> None:
    out, other = student(tmp_path / "out"), ("measure", "rounds", 5)
    before = hashes(out)
    assert student(out) == out and hashes(out) == before
    with pytest.raises(InputError, match="holds a student that another recipe made"):
        student(out, other)
    assert hashes(out) == before
    assert "rounds: 5" in training_of(student(out, other, overwrite=True))["recipe"]


@pytest.mark.parametrize(
    "content", [{"notes.txt": "mine"}, {"training.json": "broken"}, {"training.json": "[]"}]
)
def test_a_folder_that_is_no_student_is_left_alone(
    content: dict[str, str], student: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, text in content.items():
        (out / name).write_text(text)
    with pytest.raises(InputError, match="is not a student, so it is left alone"):
        student(out, overwrite=True)
    assert {path.name: path.read_text() for path in out.iterdir()} == content and aside(out) == []


def test_a_recipe_that_trains_no_student_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tmp_path / "cut.yaml"
    recipe.write_text("stages: [prepare, finetune, student, export, pack, controls, measure]\n")
    with pytest.raises(RecipeError, match="add one that trains the student"):
        distill_student(str(tiny.teacher), str(tiny.data), recipe=recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_name_the_student_is_called_after_its_data(
    student: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert student(None) == Path("students/moods")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/reviews.tsv.gz", "reviews"),
        ("/somewhere/my reviews.2024.csv", "my-reviews"),
        ("set/", "set"),
        ("pypi:some-package==1.0/inside/rows.jsonl#sha256=ab/cd", "rows"),
        ("....tsv", "pocket"),
        ("日本.tsv", "pocket"),
    ],
)
def test_names_of_pockets(source: str, name: str) -> None:
    assert pocket_name(resolve({"teacher": "t", "data": source})) == name


def test_the_pocket_of_the_demo_has_its_own_name() -> None:
    assert pocket_name(resolved_recipe()) == DEMO_NAME


def test_a_pocket_is_made_again_from_the_recipe_it_carries(
    quick: Callable[..., Path], tmp_path: Path, made: Made
) -> None:
    out = shrink(recipe=made.pocket, out=tmp_path / "again", threads=1)
    assert {name: hashes(out)[name] for name in WEIGHTS} == {
        name: hashes(made.pocket)[name] for name in WEIGHTS
    }


# What killed runs leave


def dead_process() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return child.pid


def test_what_dead_runs_left_is_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    dead, alive = dead_process(), os.getppid()
    gone = [f".out.{dead}.partial", f".out.{dead}.old", f".out.{os.getpid()}.partial"]
    kept = [f".out.{alive}.partial", f".other.{dead}.partial", f".out.{dead}.partial.txt", ".out.x.partial"]
    for name in [*gone, *kept, "out"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "out" / "file").unlink()
    check_output(tmp_path / "out", "another", False, "pocket", read_info)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "out"])


def test_a_pocket_lost_between_two_renames_comes_back(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made.pocket, tmp_path / f".out.{dead_process()}.old")
    with pytest.raises(InputError, match="another recipe made"):
        check_output(out, "another", False, "pocket", read_info)
    assert hashes(out) == hashes(made.pocket) and aside(out) == []


def test_a_folder_that_cannot_be_written_is_told_before_any_work(
    quick: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("pocketlm.pipeline.run", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="the file system is read-only"):
        quick(tmp_path / "out")


# kill -9


def command(tiny: Tiny, out: Path) -> list[str]:
    return [
        "shrink",
        str(tiny.teacher),
        "--data",
        str(tiny.data),
        "--out",
        str(out),
        "--threads",
        "1",
        *settings(),
    ]


def whole_or_absent(out: Path) -> None:
    if out.exists():
        assert load(out).labels == LABELS
        assert json.loads((out / "pocket.json").read_text())["files"] == described_files(out)


def test_killed_anywhere_the_same_command_ends_with_the_same_pocket(
    forked: Forked, made: Made, tiny: Tiny, tmp_path: Path
) -> None:
    out, chance = tmp_path / "pockets" / "out", random.Random(20)
    order = {
        "environment": {"POCKETLM_CACHE": str(tmp_path / "cache")},
        "folders": [str(tmp_path)],
        "checkpoint_seconds": 0.0,
        "signal": signal.SIGKILL,
    }
    stages: list[int] = []
    # Some 740 changes in all, most of them checkpoints: in fine-tuning, in distilling, in the controls.
    for most in (10, 150, 150, 150, 150):
        ended = forked(*command(tiny, out), **order, at=chance.randrange(most // 2, most))
        assert ended.code == -signal.SIGKILL, ended.stderr
        whole_or_absent(out)
        stages.append(len(list((tmp_path / "cache" / "stages").glob("*/artifact.json"))))
    assert forked(*command(tiny, out), **order, seconds=1.5).code in (-signal.SIGKILL, 0)
    whole_or_absent(out)
    assert stages == sorted(stages) and 0 in stages and stages[-1] >= 4, stages
    ended = forked(*command(tiny, out), environment=order["environment"])
    assert ended.code == 0, ended.stderr
    assert {name: hashes(out)[name] for name in WEIGHTS} == {
        name: hashes(made.pocket)[name] for name in WEIGHTS
    }
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    left = [
        path
        for path in (tmp_path / "cache").rglob("*")
        if "partial" in path.name or "checkpoint" in path.name
    ]
    assert left == []


def test_killed_while_the_pocket_is_written_it_is_whole_or_absent(
    forked: Forked, made: Made, tiny: Tiny, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    order = {"environment": {"POCKETLM_CACHE": str(made.cache)}, "folders": [str(tmp_path)]}
    changes = forked(*command(tiny, out), **order).changes
    assert changes > 10
    # The last ones are the renames by which the new pocket takes the place of the old one.
    for at in sorted({*range(1, changes, 3), *range(changes - 3, changes + 1)}):
        killed = forked(*command(tiny, out), **order, signal=signal.SIGKILL, at=at)
        assert killed.code == -signal.SIGKILL
        whole_or_absent(out)
    assert forked(*command(tiny, out), **order).code == 0
    whole_or_absent(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Teachers that are fine-tuned already


@pytest.fixture(scope="module")
def tuned(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained tiny teacher, as its user has it."""
    return Path(shutil.copytree(made.part("teacher"), tmp_path_factory.mktemp("tuned") / "teacher"))


def relabelled(folder: Path, target: Path, labels: Sequence[str]) -> Path:
    """The same teacher, its outputs called otherwise."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = dict(enumerate(labels))
    config["label2id"] = {label: index for index, label in enumerate(labels)}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def permuted(folder: Path, target: Path, order: Sequence[int]) -> Path:
    """A teacher whose outputs are permuted, its labels along with them."""
    from safetensors.torch import load_file, save_file

    relabelled(folder, target, [LABELS[index] for index in order])
    tensors = load_file(target / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][list(order)].clone()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def teacher_logits(artifact: Artifact) -> np.ndarray:
    from pocketlm.models.load import Classifier

    teacher = Classifier.load(artifact.parts["teacher"], artifact.task, 32)
    return teacher.logits(teacher.encode(load_split(artifact.parts["data"], "valid").texts))


def test_a_fine_tuned_teacher_is_taken_as_it_is(tuned: Path, tiny: Tiny, tmp_path: Path, made: Made) -> None:
    artifact = prepared(tuned, tiny.data, tmp_path, until="finetune")
    assert artifact.figures["teacher"]["trained"] is False and artifact.figures["teacher"]["curve"] == []
    assert hashes(artifact.parts["teacher"])["model.safetensors"] == hashes(tuned)["model.safetensors"]


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0)])
def test_labels_in_another_order_are_brought_into_the_datas(
    order: tuple[int, ...], tuned: Path, tiny: Tiny, tmp_path: Path
) -> None:
    straight = prepared(tuned, tiny.data, tmp_path / "cache", until="finetune")
    other = permuted(tuned, tmp_path / "permuted", order)
    artifact = prepared(other, tiny.data, tmp_path / "cache", until="finetune")
    assert artifact.figures["teacher"] == straight.figures["teacher"]
    np.testing.assert_allclose(teacher_logits(artifact), teacher_logits(straight), atol=1e-5)


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1", "LABEL_2"), ("BLAME", "Praise", "ÇA VA")])
def test_labels_without_names_or_in_another_case_are_taken_in_their_order(
    names: tuple[str, ...], tuned: Path, tiny: Tiny, tmp_path: Path
) -> None:
    other = relabelled(tuned, tmp_path / "other", names)
    artifact = prepared(other, tiny.data, tmp_path / "cache", until="finetune")
    assert artifact.figures["teacher"]["trained"] is False
    config = json.loads((artifact.parts["teacher"] / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == list(LABELS)


def test_swapped_labels_are_found_out(tuned: Path, tiny: Tiny, tmp_path: Path) -> None:
    swapped = relabelled(tuned, tmp_path / "swapped", [LABELS[1], LABELS[2], LABELS[0]])
    with pytest.raises(TeacherError, match="another order") as raised:
        prepared(swapped, tiny.data, tmp_path / "cache", until="finetune")
    assert f"if its outputs meant {', '.join(LABELS)};" in str(raised.value)
    mended = relabelled(tuned, tmp_path / "mended", LABELS)
    assert prepared(mended, tiny.data, tmp_path / "cache", until="finetune").figures["max_length"] == 32
    artifact = prepared(
        swapped, tiny.data, tmp_path / "cache", until="finetune", overrides=[("finetune", "mode", "always")]
    )
    assert artifact.figures["teacher"]["trained"] is True


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("a", "b", "c"), "the teacher's labels are a, b, c, but the data's are Blame"),
        (LABELS[:2], "head has 2 outputs"),
    ],
)
def test_a_head_for_another_task_is_refused(
    labels: tuple[str, ...], told: str, tuned: Path, tiny: Tiny, tmp_path: Path
) -> None:
    other = relabelled(tuned, tmp_path / "other", labels)
    with pytest.raises(TeacherError, match=told) as raised:
        prepared(other, tiny.data, tmp_path / "cache", until="finetune")
    assert "--fine-tune always" in str(raised.value)


def test_a_teacher_without_a_head_is_not_taken_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no classification head"):
        prepared(tiny.teacher, tiny.data, tmp_path, "finetune", overrides=[("finetune", "mode", "never")])


def test_a_teacher_that_has_learnt_nothing_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    idle = [("finetune", "learning_rate", 1e-9), ("finetune", "epochs", 1)]
    with pytest.raises(TeacherError, match="there is nothing to distil"):
        prepared(tiny.teacher, tiny.data, tmp_path, "finetune", overrides=idle)


def test_texts_longer_than_the_teacher_reads_are_cut(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{**row, "text": row["text"] + " the" * 100} for row in sentence_rows(480)]
    data = write_tsv(tmp_path / "long.tsv", rows)
    longest = [("finetune", "max_length", 128), ("finetune", "epochs", 8)]
    artifact = prepared(tiny.teacher, data, tmp_path / "cache", "student", overrides=longest)
    assert artifact.figures["max_length"] == 64


# Arguments


def test_a_teacher_needs_data_and_splits_need_training_data(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="no data; name a file or folder with --data"):
        resolved_recipe(str(tiny.teacher))
    with pytest.raises(InputError, match="no training data; name them with --data"):
        resolved_recipe(valid="valid.tsv")


def test_a_recipe_of_stages_alone_is_run_on_the_demos_data(tmp_path: Path) -> None:
    recipe = resolved_recipe(recipe=Path("magnitude"))
    whole = resolved_recipe()
    assert (recipe.teacher, recipe.data, recipe.stages[0]) == (whole.teacher, whole.data, whole.stages[0])
    assert recipe.stages != whole.stages
    path = tmp_path / "own.yaml"
    path.write_text("teacher: models/mine\n")
    with pytest.raises(InputError, match="the teacher models/mine was given, but no data"):
        resolved_recipe(recipe=path)


def test_a_recipe_may_name_the_data_and_arguments_win(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("teacher: from-recipe\ndata: {train: a.tsv, test: t.tsv}\nseed: 3\n")
    recipe = resolved_recipe(recipe=path)
    assert (recipe.teacher, recipe.data.train, recipe.data.test, recipe.seed) == (
        "from-recipe",
        "a.tsv",
        "t.tsv",
        3,
    )
    recipe = resolved_recipe("given", "b.tsv", recipe=path, seed=4)
    assert (recipe.teacher, recipe.data.train, recipe.data.test, recipe.seed) == ("given", "b.tsv", None, 4)


def test_unlabeled_texts_join_the_data_of_arguments_or_recipe(tmp_path: Path) -> None:
    assert resolved_recipe("t", "d.tsv", unlabeled="raw.txt").data.unlabeled == "raw.txt"
    assert resolved_recipe(unlabeled="raw.txt").data.unlabeled == "raw.txt"
    path = tmp_path / "r.yaml"
    path.write_text("data: a.tsv\n")
    data = resolved_recipe(recipe=path, unlabeled="raw.txt").data
    assert (data.train, data.unlabeled) == ("a.tsv", "raw.txt")
    path.write_text("data: {train: a.tsv, unlabeled: theirs.txt}\n")
    assert resolved_recipe(recipe=path).data.unlabeled == "theirs.txt"
    assert resolved_recipe("t", "b.tsv", recipe=path).data.unlabeled is None


def test_a_setting_of_an_unknown_stage_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'finetune'"):
        resolved_recipe("t", "d", overrides=[("finetine", "epochs", 1)])

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketlm.artifact import Artifact
from pocketlm.data.examples import Examples, load_pool, load_split
from pocketlm.data.prepare import Prepare
from pocketlm.errors import DataError, RecipeError, StorageError
from pocketlm.progress import Quiet
from pocketlm.stage import Context
from pocketlm.tasks.task import START, Task
from pocketlm.tasks.words import words_of


class Heard(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def run(tmp_path: Path):
    """Prepare the given sources; returns the artifact and what was said."""

    def run(stage: Prepare, folder: Path = tmp_path / "stage", **sources: Path) -> tuple[Artifact, list[str]]:
        progress = Heard()
        artifact = Artifact("start", parts={f"{split}_source": path for split, path in sources.items()})
        return stage(artifact, Context(folder, folder, progress)), progress.lines

    return run


def write_tsv(path: Path, rows: Iterable[tuple[object, ...]], header: str = "text\tlabel") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def splits(artifact: Artifact) -> dict[str, Examples]:
    return {split: load_split(artifact.parts["data"], split) for split in ("train", "valid", "test")}


def test_a_single_file_is_cut_into_three(run, tmp_path: Path) -> None:
    rows = [(f"text {n % 100}", "good" if n % 100 < 30 else "bad") for n in range(150)]
    artifact, said = run(Prepare(), train=write_tsv(tmp_path / "a.tsv", rows))
    assert artifact.parts["data"] == tmp_path / "stage"
    assert artifact.task == Task("classification", False, ("bad", "good"))
    assert artifact.figures["columns"] == {"text": ["text"], "label": "label"}
    assert artifact.figures["dropped"] == {"train": {"empty_text": 0, "other_label": 0}}
    assert artifact.figures["overlap"] == {"valid": 0, "test": 0}
    assert said == []
    json.dumps(artifact.figures)
    parts = splits(artifact)
    assert artifact.figures["rows"] == {split: len(part) for split, part in parts.items()}
    distinct = {split: set(part.texts) for split, part in parts.items()}
    assert {split: len(texts) for split, texts in distinct.items()} == {"train": 80, "valid": 10, "test": 10}
    assert set.union(*distinct.values()) == {(f"text {n}",) for n in range(100)}
    together = [
        (texts[0], artifact.task.labels[int(label)])
        for part in parts.values()
        for texts, label in zip(part.texts, part.labels, strict=True)
    ]
    assert sorted(together) == sorted(rows)


def test_row_order_does_not_change_the_splits(run, tmp_path: Path) -> None:
    rows = [(f"text {n}", n % 2) for n in range(60)]
    one, _ = run(Prepare(), tmp_path / "one", train=write_tsv(tmp_path / "a.tsv", rows))
    two, _ = run(Prepare(), tmp_path / "two", train=write_tsv(tmp_path / "b.tsv", rows[::-1]))
    other, _ = run(Prepare(split_seed=1), tmp_path / "other", train=tmp_path / "a.tsv")
    for split in ("train", "valid", "test"):
        assert splits(one)[split].texts == splits(two)[split].texts[::-1]
        assert splits(one)[split] != splits(other)[split]


def test_groups_stay_together_and_strata_keep_their_shares(run, tmp_path: Path) -> None:
    rows = [(f"text {n}", "a" if n < 300 else "b", f"film {n // 3}") for n in range(400)]
    source = write_tsv(tmp_path / "a.tsv", rows, "text\tlabel\tfilm")
    film = {(text,): film for text, _, film in rows}
    artifact, _ = run(Prepare(group="film"), tmp_path / "groups", train=source)
    films = [{film[texts] for texts in part.texts} for part in splits(artifact).values()]
    assert sum(map(len, films)) == len(set.union(*films)) == len(set(film.values()))
    artifact, _ = run(Prepare(stratify=True), tmp_path / "strata", train=source)
    counts = {split: Counter(part.labels) for split, part in splits(artifact).items()}
    assert counts == {"train": {0: 240, 1: 80}, "valid": {0: 30, 1: 10}, "test": {0: 30, 1: 10}}


def test_a_shared_text_across_groups_is_stated(run, tmp_path: Path) -> None:
    rows = [("the same", n % 2, f"film {n}") for n in range(20)]
    source = write_tsv(tmp_path / "a.tsv", rows, "text\tlabel\tfilm")
    artifact, said = run(Prepare(group="film"), train=source)
    assert artifact.figures["overlap"] == {"valid": 2, "test": 2}
    assert said == ["valid: 2 of 2 texts also occur in train", "test: 2 of 2 texts also occur in train"]


def test_keep_and_empty_texts_are_dropped_and_counted(run, tmp_path: Path) -> None:
    lines = [{"text": f"text {n}", "label": ("fresh", "rotten", "plot")[n % 3]} for n in range(60)]
    lines += [{"text": "  ", "label": "fresh"}, {"text": None, "label": "rotten"}, {"label": None}]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    artifact, said = run(Prepare(keep=("rotten", "fresh")), train=source)
    assert artifact.task.labels == ("fresh", "rotten")
    assert artifact.figures["dropped"] == {"train": {"empty_text": 2, "other_label": 21}}
    assert sum(artifact.figures["rows"].values()) == 40
    assert said == [
        "train: dropped 2 rows without a text",
        "train: dropped 21 rows whose label is not one to keep",
    ]


def test_a_folder_and_files_that_win_over_it(run, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_tsv(folder / "train.tsv", [("a", "x"), ("b", "y"), ("c", "x")])
    write_tsv(folder / "dev.tsv", [("y", "d"), ("x", "a")], "LABEL\tText")
    write_tsv(folder / "data" / "test.tsv", [("f", "y")])
    artifact, said = run(Prepare(), tmp_path / "one", train=folder)
    assert splits(artifact) == {
        "train": Examples([("a",), ("b",), ("c",)], [0, 1, 0]),
        "valid": Examples([("d",), ("a",)], [1, 0]),
        "test": Examples([("f",)], [1]),
    }
    assert artifact.figures["overlap"] == {"valid": 1, "test": 0}
    assert said == ["valid: 1 of 2 texts also occur in train"]
    test = write_tsv(tmp_path / "mine.tsv", [("g", "x")])
    artifact, _ = run(Prepare(), tmp_path / "two", train=folder, test=test)
    assert splits(artifact)["test"] == Examples([("g",)], [0])


def test_only_what_is_missing_is_cut(run, tmp_path: Path) -> None:
    train = write_tsv(tmp_path / "a.tsv", [(f"text {n}", n % 2) for n in range(100)])
    test = write_tsv(tmp_path / "t.tsv", [("text", 1)])
    artifact, _ = run(Prepare(valid_fraction=0.2), train=train, test=test)
    assert artifact.figures["rows"] == {"train": 80, "valid": 20, "test": 1}


def test_regression_pairs(run, tmp_path: Path) -> None:
    rows = [(f"a {n}", f"b {n}", f"{n / 10:.3f}") for n in range(50)]
    train = write_tsv(tmp_path / "a.tsv", rows, "sentence1\tsentence2\tscore")
    test = write_tsv(tmp_path / "t.tsv", [("a", "b", "-7")], "sentence1\tsentence2\tscore")
    artifact, _ = run(Prepare(), train=train, test=test)
    assert artifact.task == Task("regression", True)
    assert artifact.figures["columns"] == {"text": ["sentence1", "sentence2"], "label": "score"}
    assert splits(artifact)["test"] == Examples([("a", "b")], [-7.0])
    assert len(splits(artifact)["train"].texts[0]) == 2


def test_the_kind_is_that_of_the_whole_file(run, tmp_path: Path) -> None:
    """One fraction among whole numbers makes regression, on whichever side of the cut it falls."""
    for odd in range(20):
        rows = [(f"text {n}", "2.5" if n == odd else n % 5) for n in range(20)]
        source = write_tsv(tmp_path / f"{odd}.tsv", rows)
        artifact, _ = run(Prepare(), tmp_path / f"stage {odd}", train=source)
        assert artifact.task.kind == "regression"


def test_train_rows_is_a_stable_sample(run, tmp_path: Path) -> None:
    rows = [(f"text {n}", n % 2) for n in range(200)]
    source = write_tsv(tmp_path / "a.tsv", rows)
    parts = {
        count: splits(run(Prepare(train_rows=count), tmp_path / str(count), train=source)[0])
        for count in (20, 40, 1000)
    }
    assert [len(part["train"]) for part in parts.values()] == [20, 40, 160]
    assert set(parts[20]["train"].texts) < set(parts[40]["train"].texts) < set(parts[1000]["train"].texts)
    assert parts[20]["test"] == parts[40]["test"] == parts[1000]["test"]


def test_a_sample_of_one_label_is_refused(run, tmp_path: Path) -> None:
    rows = [(f"text {n}", int(n < 5)) for n in range(1000)]
    test = write_tsv(tmp_path / "t.tsv", [("x", 0)])
    train = write_tsv(tmp_path / "a.tsv", rows)
    with pytest.raises(DataError, match="the sample of train_rows=2 has one label only; take more rows"):
        run(Prepare(train_rows=2), train=train, valid=test, test=test)


TWO_CLASSES = [(f"text {n}", n % 2) for n in range(20)]


@pytest.mark.parametrize(
    ("stage", "train_rows", "test_rows", "message"),
    [
        (Prepare(), [("a", 1)] * 9, [("b", 1)], r"train \(a.tsv\): one class only \('1'\)"),
        (
            Prepare(),
            TWO_CLASSES,
            [("", 1), ("c", 2)],
            r"test \(t.tsv\), row 2: label '2' does not occur",
        ),
        (
            Prepare(),
            [("", ""), ("a", 1), ("b", "")],
            [("c", 1)],
            r"train \(a.tsv\), row 3: the label is missing",
        ),
        (Prepare(), [("a", 1), ("b", 0)], [("", 1)], r"test \(t.tsv\): no row with a text is left of 1"),
        (Prepare(keep=("1", "7")), [("a", 1), ("b", 0)], [("c", 1)], r"keep names '7', .*; found: 0, 1"),
        (
            Prepare(),
            [(f"text {n}", n / 2) for n in range(20)],
            [("c", "x")],
            r"test \(t.tsv\), row 1: 'x' is not a finite number",
        ),
        (
            Prepare(stratify=True),
            [("a", 0.5), ("b", 1)],
            [("c", 1)],
            r"train \(a.tsv\): stratify needs classes",
        ),
        (
            Prepare(text=("words",)),
            [("a", 0), ("b", 1)],
            [("c", 1)],
            r"a.tsv: --text words: there is no such",
        ),
        (
            Prepare(group="film"),
            [("a", 0), ("b", 1)],
            [("c", 1)],
            r"a.tsv: group 'film': .* found: text, label",
        ),
        (Prepare(), [("a", 0), ("a", 1)], [("c", 1)], r"cannot cut 2 rows in 1 group\(s\)"),
    ],
)
def test_unusable_data(run, tmp_path: Path, stage: Prepare, train_rows, test_rows, message: str) -> None:
    train, test = write_tsv(tmp_path / "a.tsv", train_rows), write_tsv(tmp_path / "t.tsv", test_rows)
    with pytest.raises(DataError, match=message):
        run(stage, train=train, test=test)
    assert not (tmp_path / "stage").exists()


def test_a_label_lost_in_the_cut_is_named(run, tmp_path: Path) -> None:
    rows = [(f"text {n}", n % 2) for n in range(30)] + [("text rare", "rare")]
    source = write_tsv(tmp_path / "a.tsv", rows)
    failed = 0
    for seed in range(20):
        try:
            run(Prepare(split_seed=seed), tmp_path / f"plain {seed}", train=source)
        except DataError as error:
            failed += 1
            assert "(cut from a.tsv), row 31: label 'rare' does not occur in train" in str(error)
            assert "stratify keeps every label in train" in str(error)
        artifact, _ = run(Prepare(split_seed=seed, stratify=True), tmp_path / f"strata {seed}", train=source)
        assert artifact.task.labels == ("0", "1", "rare")
    assert failed


def test_a_split_without_the_columns_of_train(run, tmp_path: Path) -> None:
    train = write_tsv(tmp_path / "a.tsv", [("a", 0), ("b", 1)])
    test = write_tsv(tmp_path / "t.tsv", [("c", 1)], "text\ttarget")
    with pytest.raises(DataError, match=r"t.tsv: --label label: there is no such column; .* target \('1'\)"):
        run(Prepare(), train=train, test=test)


def test_a_missing_group_value(run, tmp_path: Path) -> None:
    train = write_tsv(tmp_path / "a.tsv", [("a", 0, "x"), ("b", 1, "")], "text\tlabel\tfilm")
    with pytest.raises(DataError, match=r"a.tsv, row 2: no value in the group column 'film'"):
        run(Prepare(group="film"), train=train)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"valid_fraction": 0.0}, "valid_fraction=0.0 is out of range; allowed: more than 0 and less than 1"),
        ({"test_fraction": 1.5}, "test_fraction=1.5 is out of range"),
        (
            {"valid_fraction": 0.5, "test_fraction": 0.5},
            "leave nothing to train on; allowed: a sum of less than 1",
        ),
        ({"train_rows": 0}, "train_rows=0 is out of range; allowed: 2 or more"),
        ({"kind": "regression", "keep": ("a",)}, "keep and stratify are for classes"),
        ({"kind": "regression", "stratify": True}, "keep and stratify are for classes"),
    ],
)
def test_fields_out_of_range(fields, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(Prepare(), **fields)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder(run, tmp_path: Path) -> None:
    source = write_tsv(tmp_path / "a.tsv", [(f"text {n}", n % 2) for n in range(30)])
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="permission denied"):
        run(Prepare(), tmp_path / "closed" / "stage", train=source)


def test_a_full_disk(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Examples, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Examples, "save", full)
    source = write_tsv(tmp_path / "a.tsv", [(f"text {n}", n % 2) for n in range(30)])
    with pytest.raises(StorageError, match=r"train.jsonl: the disk is full; free some space"):
        run(Prepare(), train=source)


def test_mrpc(run, data_dir: Path) -> None:
    artifact, _ = run(Prepare(), train=data_dir / "mrpc")
    assert artifact.task == Task("classification", True, ("0", "1"))
    assert artifact.figures["rows"] == {"train": 3668, "valid": 408, "test": 1725}
    assert artifact.figures["dropped"]["train"] == {"empty_text": 0, "other_label": 0}


def test_stsb(run, data_dir: Path) -> None:
    artifact, _ = run(Prepare(), train=data_dir / "stsb")
    assert artifact.task == Task("regression", True)
    assert artifact.figures["rows"] == {"train": 5749, "valid": 1500, "test": 1379}
    labels = splits(artifact)["train"].labels
    assert (min(labels), max(labels)) == (0.0, 5.0)


def test_sst2_sample(run, data_dir: Path) -> None:
    artifact, _ = run(
        Prepare(train_rows=1000), train=data_dir / "sst2" / "train.tsv", test=data_dir / "sst2" / "dev.tsv"
    )
    assert artifact.task == Task("classification", False, ("0", "1"))
    rows = artifact.figures["rows"]
    assert (rows["train"], rows["test"]) == (1000, 872)
    assert abs(rows["valid"] - 6735) < 100


@pytest.mark.parametrize(
    ("name", "label", "classes", "kind"),
    [("clinc150", "label", 151, None), ("snips", "intent", 7, "classification")],
)
def test_intents(run, data_dir: Path, name: str, label: str, classes: int, kind: Any) -> None:
    artifact, _ = run(Prepare(kind=kind), train=data_dir / name)
    assert artifact.task.outputs == classes
    assert artifact.figures["columns"] == {"text": ["text"], "label": label}


def test_atis_has_an_intent_that_train_lacks(run, data_dir: Path) -> None:
    with pytest.raises(
        DataError, match=r"valid \(valid.jsonl\), row \d+: label 'atis_[a-z_#]+' does not occur in train"
    ):
        run(Prepare(kind="classification"), train=data_dir / "atis")


@pytest.mark.parametrize(("name", "intents", "rows"), [("snips", 7, 13084), ("atis", 21, 4478)])
def test_intents_and_slots(run, data_dir: Path, name: str, intents: int, rows: int) -> None:
    artifact, said = run(Prepare(), train=data_dir / name)
    task = artifact.task
    assert (task.kind, task.pair, len(task.labels)) == ("joint", False, intents)
    assert "O" in task.tags and len(task.tags) > 50
    assert artifact.figures["columns"] == {"text": ["tokens"], "label": "intent", "tags": "slots"}
    assert artifact.figures["rows"]["train"] == rows
    missing = artifact.figures["unknown"]
    for name, examples in splits(artifact).items():
        assert [len(words_of(task, texts)) for texts in examples.texts] == [
            len(label["tags"]) for label in examples.labels
        ]
        unknown = sum(label["intent"] == -1 for label in examples.labels)
        assert unknown == (missing[name]["intents"] if name in missing else 0)
    if task.labels[0].startswith("atis"):
        assert missing["test"]["intents"] > 0 and missing["test"]["tags"] > 0
        assert any("intents do not occur in train and count as wrong" in line for line in said)


# Labels of words, several labels, and answers


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_tokens_come_as_lists_or_as_strings(run, tmp_path: Path) -> None:
    rows = [{"tokens": ["go", f"to{n}", "Rome"], "ner_tags": ["O", "O", "B-city"]} for n in range(20)]
    listed, _ = run(Prepare(), tmp_path / "a", train=write_jsonl(tmp_path / "a.jsonl", rows))
    flat = [(" ".join(row["tokens"]), " ".join(row["ner_tags"])) for row in rows]
    written = write_tsv(tmp_path / "b.tsv", flat, "words\ttags")
    spaced, _ = run(Prepare(), tmp_path / "b", train=written)
    count = len(splits(listed)["train"])
    transitions = ((START, 1, count), (1, 0, count), (1, 1, count))
    assert listed.task == spaced.task == Task("tokens", False, tags=("B-city", "O"), transitions=transitions)
    assert splits(listed) == splits(spaced)
    assert splits(listed)["train"].labels[0] == ["O", "O", "B-city"]
    assert splits(listed)["train"].texts[0][0].split()[2] == "Rome"


@pytest.mark.parametrize("last", ["E", "L"])
def test_tags_that_tell_the_last_word_are_read_as_bio(run, tmp_path: Path, last: str) -> None:
    single = {"E": "S", "L": "U"}[last]
    tags = ["O", "B-city", f"{last}-city", f"{single}-time"]
    rows = [{"tokens": [f"to{n}", "New", "York", "now"], "tags": tags} for n in range(20)]
    lacking = {"tokens": ["to", "Bari"], "tags": ["O", f"{single}-harbour"]}
    test = write_jsonl(tmp_path / "test.jsonl", [rows[0], lacking])
    artifact, said = run(Prepare(), train=write_jsonl(tmp_path / "a.jsonl", rows), test=test)
    assert artifact.task.tags == ("B-city", "B-time", "I-city", "O")
    assert splits(artifact)["test"].labels == [["O", "B-city", "I-city", "B-time"], ["O", "B-harbour"]]
    assert any("BIOES" in line for line in said)


def test_intents_stay_beside_tags_that_are_read_as_bio(run, tmp_path: Path) -> None:
    rows = [
        {"tokens": f"go {n} Rome", "slots": "O O S-city", "intent": ("go", "fly")[n % 2]} for n in range(20)
    ]
    rows.append({"tokens": "go to Rio Branco", "slots": "O O B-city E-city", "intent": "go"})
    artifact, _ = run(Prepare(), train=write_jsonl(tmp_path / "a.jsonl", rows))
    assert artifact.task.kind == "joint" and set(artifact.task.tags) <= {"B-city", "I-city", "O"}
    assert {label["intent"] for label in splits(artifact)["train"].labels} == {0, 1}


@pytest.mark.parametrize("tags", ["O B-city I-city", "O E-mail name", "O S-x S-x", "B-x E-mail name"])
def test_other_tags_are_read_as_they_are(run, tmp_path: Path, tags: str) -> None:
    rows = [{"tokens": f"a b c{n}", "tags": tags} for n in range(20)]
    artifact, said = run(Prepare(), train=write_jsonl(tmp_path / "a.jsonl", rows))
    assert splits(artifact)["train"].labels[0] == tags.split() and not any("BIOES" in line for line in said)


def test_a_tag_that_train_lacks_is_kept_and_counted(run, tmp_path: Path) -> None:
    row = {"tokens": "fly to Rome", "slots": "O O B-city", "intent": "fly"}
    train = [row, {**row, "intent": "book"}, {**row, "tokens": "go to Bari"}]
    test = [{**row, "slots": "O B-new I-new", "intent": "new"}, row]
    sources = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("train", train), ("valid", train), ("test", test))
    }
    artifact, said = run(Prepare(), **sources)
    # Of train alone: three rows of O, O, B-city.
    transitions = ((START, 1, 3), (1, 0, 3), (1, 1, 3))
    assert artifact.task == Task("joint", False, ("book", "fly"), ("B-city", "O"), transitions)
    assert splits(artifact)["test"].labels == [
        {"intent": -1, "tags": ["O", "B-new", "I-new"]},
        {"intent": 1, "tags": ["O", "O", "B-city"]},
    ]
    assert artifact.figures["unknown"] == {
        "valid": {"intents": 0, "tags": 0}, "test": {"intents": 1, "tags": 2},
    }  # fmt: skip
    assert "test: 1 intents do not occur in train and count as wrong" in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"tokens": ["New York", "now"], "tags": ["B-city", "O"]},
            r"row 1: token 1 is 'New York'; a",
        ),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, r"row 1: token 2 is ''; a token is one word"),
        ({"tokens": "a b", "tags": "O"}, r"row 1: 1 tags for 2 tokens; give every token one tag"),
        ({"tokens": "a b", "tags": [0, 1]}, r"row 1: the tags are numbers \(0, …\).*such as O, B-city"),
        ({"tokens": "a b", "tags": "O O"}, r"1 different tags \(O\), so there is nothing to learn"),
    ],
)
def test_unusable_tags_are_told(run, tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(Prepare(), train=write_jsonl(tmp_path / "a.jsonl", [row, {**row, "tokens": "c d"}] * 2))


def test_several_labels_come_as_lists_or_with_a_separator(run, tmp_path: Path) -> None:
    labels = [["a", "b"], [], ["b"], ["c", "a"]]
    rows = [{"text": f"text {n}", "label": labels[n % 4]} for n in range(40)]
    listed, _ = run(Prepare(), tmp_path / "a", train=write_jsonl(tmp_path / "a.jsonl", rows))
    assert listed.task == Task("multilabel", False, ("a", "b", "c"))
    flat = [(row["text"], " ; ".join(row["label"])) for row in rows]
    written = write_tsv(tmp_path / "b.tsv", flat)
    cut, _ = run(Prepare(kind="multilabel", separator=";"), tmp_path / "b", train=written)
    assert cut.task == listed.task and splits(cut) == splits(listed)
    assert {tuple(label) for label in splits(cut)["train"].labels} == {(0, 1), (), (1,), (0, 2)}
    with pytest.raises(RecipeError, match="separator='' cuts nothing"):
        Prepare(separator="")


def test_answers_in_every_form(run, tmp_path: Path) -> None:
    context = "The tower (built in 1889) stands in Paris. Paris is old."
    forms: list[dict[str, Any]] = [
        {"answers": {"text": ["in Paris", "Paris"], "answer_start": [33, 36]}},
        {"answers": [{"text": "in Paris", "answer_start": 33}, {"text": "Paris", "answer_start": 43}]},
        {"answers": ["in Paris", "Paris"]},
    ]
    for place, form in enumerate(forms):
        rows = [{"question": f"Where {n}?", "context": context, **form} for n in range(9)]
        source = write_jsonl(tmp_path / f"{place}.jsonl", rows)
        artifact, _ = run(Prepare(), tmp_path / str(place), train=source)
        assert artifact.task == Task("qa", pair=True)
        assert splits(artifact)["train"].labels[0] == {"answers": ["in Paris", "Paris"], "start": 8, "end": 9}
    rows = [
        {"question": f"Where {n}?", "context": context, "answer": "Paris", "answer_start": 43}
        for n in range(9)
    ]
    rows.append({"question": "Who?", "context": context, "answer": "", "answer_start": None})
    artifact, said = run(Prepare(), tmp_path / "one", train=write_jsonl(tmp_path / "one.jsonl", rows))
    assert splits(artifact)["train"].labels[0] == {"answers": ["Paris"], "start": 11, "end": 11}
    assert artifact.figures["dropped"]["train"]["no_answer"] == 1
    assert said == ["train: dropped 1 questions without an answer"]


def test_an_answer_that_is_not_in_its_context_is_told(run, tmp_path: Path) -> None:
    rows = [{"question": "Where?", "context": "in Rome", "answer": "Paris"}] * 9
    with pytest.raises(DataError, match=r"row 1: the answer 'Paris' is not in the context.*remove the row"):
        run(Prepare(), train=write_jsonl(tmp_path / "a.jsonl", rows))


def test_a_part_of_a_word_is_answered_by_the_word(run, tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "context": "the 1990s ended", "answer": "1990"} for n in range(9)]
    artifact, _ = run(Prepare(), train=write_jsonl(tmp_path / "a.jsonl", rows))
    assert splits(artifact)["train"].labels[0] == {"answers": ["1990"], "start": 1, "end": 1}


def test_the_users_word_settles_what_the_columns_show(run, tmp_path: Path) -> None:
    rows = [
        {"text": f"go {n}", "tokens": ["go", str(n)], "slots": ["O", "B-n"], "intent": "ab"[n % 2]}
        for n in range(30)
    ]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    kinds = {
        name: run(stage, tmp_path / name, train=source)[0].task.kind
        for name, stage in {
            "joint": Prepare(),
            "classification": Prepare(text=("text",), label="intent"),
            "tokens": Prepare(kind="tokens"),
        }.items()
    }
    assert kinds == {name: name for name in kinds}


def test_unlabeled_texts_are_kept_where_no_split_has_them(run, tmp_path: Path) -> None:
    rows = [(f"text {n}", n % 2) for n in range(60)]
    raw = tmp_path / "raw.txt"
    raw.write_text("".join(f"TEXT  {n}\n" for n in range(70)) + "\ntext 65\n")
    artifact, said = run(Prepare(), train=write_tsv(tmp_path / "a.tsv", rows), unlabeled=raw)
    assert load_pool(artifact).texts[-10:] == [(f"TEXT  {n}",) for n in range(60, 70)]
    assert len(load_pool(artifact)) == 48 + 10 and len(load_pool(artifact).labels) == 48
    assert artifact.figures["rows"] == {"train": 48, "valid": 6, "test": 6, "unlabeled": 10}
    assert artifact.figures["dropped"]["unlabeled"] == {"empty_text": 1, "in_a_split": 60, "repeated": 1}
    assert said == [
        "unlabeled: 10 of 72 texts are new (1 are empty, 60 occur in train, valid or test, 1 are repeated)"
    ]


def test_rows_left_out_of_a_sample_may_come_back_without_their_labels(run, tmp_path: Path) -> None:
    table = write_tsv(tmp_path / "a.tsv", [(f"text {n}", n % 2) for n in range(60)])
    artifact, _ = run(Prepare(train_rows=20), train=table, unlabeled=table)
    assert artifact.figures["rows"] == {"train": 20, "valid": 6, "test": 6, "unlabeled": 28}
    held = {texts for split in ("valid", "test") for texts in splits(artifact)[split].texts}
    assert not held & set(load_pool(artifact).texts)


def test_unlabeled_texts_that_are_all_known_are_refused(run, tmp_path: Path) -> None:
    table = write_tsv(tmp_path / "a.tsv", [(f"text {n}", n % 2) for n in range(60)])
    with pytest.raises(DataError, match=r"unlabeled \(a.tsv\): none of its 60 texts is new: 0 are empty, 60"):
        run(Prepare(), train=table, unlabeled=table)

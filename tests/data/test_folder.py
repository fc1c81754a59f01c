from __future__ import annotations

from pathlib import Path

import pytest

from pocketlm.data.folder import find_splits, read_split, split_of
from pocketlm.errors import DataError


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text\tlabel\n{name}\t1\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.tsv", "train"), ("TRAIN.csv.gz", "train"), ("train_data.csv", "train"),
        ("training.csv", "train"), ("train-00000-of-00003.parquet", "train"), ("trainers.csv", None),
        ("my_train.csv", None),
        ("valid.tsv", "valid"), ("validation.csv", "valid"), ("val.csv", "valid"), ("dev2.csv", "valid"),
        ("values.csv", None), ("devices.csv", None), ("test.tsv", "test"), ("test-set.tsv", "test"),
        ("testimonials.csv", None), ("reviews.csv", None),
    ],
)  # fmt: skip
def test_the_split_is_the_start_of_the_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_splits_are_found_with_their_shards_in_order(tmp_path: Path) -> None:
    shards = [f"data/train-0000{n}-of-00003.tsv" for n in (2, 0, 1)]
    folder = fill(tmp_path, "README.md", "dev.tsv.gz", "train.txt", "reviews.tsv", *shards)
    found = find_splits(folder)
    assert set(found) == {"train", "valid"}
    assert [path.name for path in found["train"]] == [f"train-0000{n}-of-00003.tsv" for n in range(3)]
    table = read_split(found["train"])
    assert [row["text"] for row in table.rows] == sorted(shards)
    assert table.source == "train-00000-of-00003.tsv … train-00002-of-00003.tsv"


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ([], ["no train file", "found: nothing", ".jsonl"]),
        (["test.tsv", "train.txt"], ["no train file; call it train", "found: test.tsv, train.txt"]),
        ([f"{n:03}.tsv" for n in range(30)], ["found: 000.tsv", "019.tsv and 10 more"]),
        (
            ["train.tsv", "train.csv"],
            ["train: several files claim this split (train.csv, train.tsv); keep one"],
        ),
        (["train.tsv", "data/train.tsv"], ["train: several files claim this split"]),
        (["train.tsv", "dev_matched.tsv", "dev_other.tsv"], ["valid: several files claim this split"]),
        (["train-0-of-2.tsv", "train.tsv"], ["train: several files claim this split"]),
        (["train-0-of-2.tsv", "train-1-of-2.csv"], ["train: several files claim this split"]),
        (["train-0-of-2.tsv"], ["train: shard 1 of 2 is missing (found: train-0-of-2.tsv)"]),
    ],
)
def test_folders_that_leave_a_split_open(tmp_path: Path, names: list[str], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        find_splits(fill(tmp_path, *names))
    for part in parts:
        assert part in str(caught.value)


def test_shards_with_other_columns(tmp_path: Path) -> None:
    fill(tmp_path, "train-0-of-2.tsv")
    (tmp_path / "train-1-of-2.tsv").write_text("text\tmark\nx\t1\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"train-1-of-2.tsv: columns text, mark, but train-0-of-2.tsv has text, label"
    ):
        read_split(find_splits(tmp_path)["train"])

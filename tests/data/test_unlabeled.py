from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.data.unlabeled import new_texts, normalised, read_unlabeled
from pocketlm.errors import DataError

WORDS = st.sampled_from(["A", "a", " ", "  ", "b", "ß", "日", "", "\t", "É", "é"])
TEXTS = st.lists(WORDS, max_size=4).map("".join)


@given(st.lists(st.tuples(TEXTS)), st.lists(st.tuples(TEXTS)))
def test_what_is_left_is_new_and_everything_is_counted(texts, known) -> None:
    kept, dropped = new_texts(texts, known)
    plain = [normalised(example) for example in kept]
    assert len(set(plain)) == len(plain)
    assert not set(plain) & {normalised(example) for example in known}
    assert all(text.strip() for (text,) in kept)
    assert len(kept) + sum(dropped.values()) == len(texts)
    assert [example for example in texts if example in kept and example] or not kept


def test_case_and_white_space_do_not_hide_a_test_text() -> None:
    kept, dropped = new_texts(
        [("A  Quiet\ttriumph ",), ("new",), ("NEW",), ("  ",)], [("a quiet triumph",), ("other",)]
    )
    assert kept == [("new",)]
    assert dropped == {"empty_text": 1, "in_a_split": 1, "repeated": 1}


def test_a_pair_is_dropped_as_a_whole() -> None:
    kept, dropped = new_texts([("a", "b"), ("a", "c"), ("a", "")], [("A", "B")])
    assert kept == [("a", "c")]
    assert dropped == {"empty_text": 1, "in_a_split": 1, "repeated": 0}


def test_a_text_file_has_a_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "raw.txt"
    path.write_bytes('\ufefffirst, "quoted"\r\nsecond\tline\n\n日本 😀'.encode())
    assert read_unlabeled(path, ["text"]) == [
        ('first, "quoted"',), ("second\tline",), ("",), ("日本 😀",),
    ]  # fmt: skip
    packed = tmp_path / "raw.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_unlabeled(packed, ["text"]) == read_unlabeled(path, ["text"])


def test_pairs_have_a_tab_between_them(tmp_path: Path) -> None:
    path = tmp_path / "raw.txt"
    path.write_text("a\tb\n\nc\td\n")
    assert read_unlabeled(path, ["text_a", "text_b"]) == [("a", "b"), ("c", "d")]
    path.write_text("a\tb\n\nc d\n")
    with pytest.raises(DataError, match=r"unlabeled \(raw.txt\), line 3: .* one tab between.* has 0 tabs"):
        read_unlabeled(path, ["text_a", "text_b"])


def test_the_label_column_of_a_table_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "raw.tsv"
    path.write_text("label\tText\n0\tone\nnonsense\ttwo\n")
    assert read_unlabeled(path, ["text"]) == [("one",), ("two",)]


def test_tokens_are_joined_as_those_of_the_training_data_are(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"tokens": ["book", "a", "table"]}\n{"tokens": "play a song"}\n')
    assert read_unlabeled(tmp_path / "more.jsonl", ["tokens"]) == [("book a table",), ("play a song",)]


def test_a_table_of_texts_alone_may_name_them_as_it_likes(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_text('{"line": "one"}\n{"line": null}\n')
    assert read_unlabeled(path, ["text"]) == [("one",), ("",)]


def test_a_table_without_the_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "raw.tsv"
    path.write_text("id\tbody\n1\tone\n")
    with pytest.raises(DataError, match=r"no column 'text', as in the training data; found: id, body"):
        read_unlabeled(path, ["text"])


def test_a_folder_is_all_its_tables(tmp_path: Path) -> None:
    (tmp_path / "b.tsv").write_text("text\ntwo\n")
    (tmp_path / "a.csv").write_text("text,label\none,1\n")
    (tmp_path / "notes.md").write_text("three\n")
    assert read_unlabeled(tmp_path, ["text"]) == [("one",), ("two",)]

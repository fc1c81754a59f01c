from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.data.columns import (
    LABELS,
    TEXT_PAIRS,
    TEXTS,
    Columns,
    encode_labels,
    find_columns,
    infer_task,
    label_name,
)
from pocketlm.errors import DataError
from pocketlm.tasks.task import Task


@given(
    texts=st.sampled_from([*TEXT_PAIRS, *((name,) for name in TEXTS)]),
    label=st.sampled_from(LABELS),
    data=st.data(),
)
def test_known_names_are_found_in_any_case_and_order(texts, label: str, data: st.DataObject) -> None:
    spell = data.draw(st.sampled_from([str.lower, str.upper, str.title]))
    columns = [spell(name) for name in (*texts, label)]
    shuffled = data.draw(st.permutations([*columns, "id"]))
    assert find_columns(shuffled, []) == Columns(text=tuple(columns[:-1]), label=columns[-1])


def test_our_own_names_win() -> None:
    assert find_columns(["title", "text", "rating", "label"], []) == Columns(("text",), "label")
    assert find_columns(["text_a", "text_b", "title", "label"], []) == Columns(("text_a", "text_b"), "label")


def test_given_columns_win_and_are_not_searched_again() -> None:
    columns = ["title", "content", "topic", "score"]
    assert find_columns(columns, [], ["Content"], "topic") == Columns(("content",), "topic")
    assert find_columns(columns, [], ["content", "title"], "score") == Columns(("content", "title"), "score")
    assert find_columns(["title", "content", "label"], [], label="title") == Columns(("content",), "title")
    assert find_columns(["topic", "sentiment"], [], text=["topic"]) == Columns(("topic",), "sentiment")
    assert find_columns(["Text", "text", "label"], [], ["Text"]).text == ("Text",)


@pytest.mark.parametrize(
    ("columns", "text", "label", "parts"),
    [
        (
            ["words", "label"],
            (),
            None,
            ["no column is known as text", "--text COLUMN", "words ('x')", "label ('x')"],
        ),
        (
            ["text", "mark"],
            (),
            None,
            ["no column is known as label", "--label COLUMN", "text ('x'), mark ('x')"],
        ),
        (["title", "body", "label"], (), None, ["the text could be body or title", "--text"]),
        (["text", "text_a", "text_b", "label"], (), None, ["could be text_a + text_b or text"]),
        (["text", "topic", "rating"], (), None, ["the label could be topic or rating", "--label"]),
        (["text", "label"], ("words",), None, ["--text words: there is no such column", "text ('x')"]),
        (["text", "label"], (), "mark", ["--label mark: there is no such column"]),
        (["text", "label"], ("label",), "label", ["'label' is given as text and as label"]),
        (["a", "b", "c", "label"], ("a", "b", "c"), None, ["--text takes one column, or two different ones"]),
        (["a", "label"], ("a", "a"), None, ["--text takes one column, or two different ones"]),
        (["Words", "words", "label"], ("WORDS",), None, ["there is no such column"]),
    ],
)
def test_what_cannot_be_found_lists_the_columns(columns, text, label, parts) -> None:
    rows = [dict.fromkeys(columns, "x")]
    with pytest.raises(DataError) as caught:
        find_columns(columns, rows, text, label, where="a.tsv")
    assert str(caught.value).startswith("a.tsv: ")
    for part in parts:
        assert part in str(caught.value)


def test_a_wide_table_is_listed_in_part() -> None:
    with pytest.raises(DataError, match=r"c19 \('y{23}…'\) and 30 more$"):
        find_columns([f"c{n}" for n in range(50)], [{f"c{n}": "y" * 99 for n in range(50)}])


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1, "1"), (1.0, "1"), ("1", "1"), (-0.0, "0"), (2.5, "2.5"), (True, "true"), (False, "false"),
        (" fresh ", "fresh"), ("007", "007"), ("1.0", "1.0"), ("", None), ("  ", None), (None, None),
        (math.nan, None),
    ],
)  # fmt: skip
def test_label_names(value, name) -> None:
    assert label_name(value) == name


@given(st.lists(st.integers(-50, 50), min_size=2).filter(lambda values: len(set(values)) > 1), st.data())
def test_whole_numbers_are_classes_in_ascending_order(values: list[int], data: st.DataObject) -> None:
    raw = [data.draw(st.sampled_from([value, str(value), float(value)])) for value in values]
    raw = [str(value) if isinstance(value, str) else value for value in raw]
    task = infer_task(raw, pair=False)
    assert task == Task("classification", False, tuple(str(value) for value in sorted(set(values))))
    assert [int(task.labels[code]) for code in encode_labels(raw, task, "train")] == values


@given(
    st.lists(st.sampled_from(["b", "a", "Z", "é", "10", "9"]), min_size=1).map(
        lambda names: [*names, "b", "Z"]
    )
)
def test_strings_are_classes_by_code_point(names: list[str]) -> None:
    task = infer_task(names, pair=True)
    assert task.pair
    assert list(task.labels) == sorted(set(names))
    assert [task.labels[code] for code in encode_labels(names, task, "train")] == names


@given(st.lists(st.floats(-5, 5), min_size=1))
def test_one_number_with_a_fraction_makes_regression(values: list[float]) -> None:
    for raw in ([*values, 0.5, 1.0], [str(value) for value in [*values, 0.5, 1.0]]):
        task = infer_task(raw, pair=False)
        assert task == Task("regression", False)
        assert encode_labels(raw, task, "train") == [*values, 0.5, 1.0]


def test_the_users_kind_settles_it() -> None:
    assert infer_task(["1", "2", "3"], False, "regression") == Task("regression", False)
    assert infer_task(["0.5", "1.5"], False, "classification").labels == ("0.5", "1.5")
    assert infer_task([True, False], False).labels == ("false", "true")
    assert infer_task(["0.5", "x"], False).kind == "classification"
    assert infer_task(["1_0.5", "2.5"], False).kind == "classification"


def test_many_classes_are_allowed_when_rows_share_them() -> None:
    assert infer_task([str(n) for n in range(1001)] * 2, False).outputs == 1001


@pytest.mark.parametrize(
    ("labels", "kind", "parts"),
    [
        (["a", "a"], None, ["one class only ('a')", "--label"]),
        ([1, "1", 1.0], None, ["one class only ('1')"]),
        (["a", ""], None, ["row 12: the label is missing"]),
        (["a", None], None, ["row 12: the label is missing"]),
        ([0.5, math.nan], None, ["row 12: the label is missing"]),
        ([0.5, "nan"], None, ["row 12: 'nan' is not a finite number"]),
        ([0.5, math.inf], None, ["row 12: inf is not a finite number"]),
        (["1", "high"], "regression", ["row 12: 'high' is not a finite number", "--task classification"]),
        ([0.5, 10**400], "regression", ["row 12: 1000", "is not a finite number"]),
        ([True, 0.5], "regression", ["row 11: True is not a finite number"]),
        ([3, 3.0], "regression", ["every label is 3, so there is nothing to learn"]),
        ([], None, ["no rows are left to train on"]),
    ],
)
def test_labels_that_make_no_task(labels, kind, parts) -> None:
    with pytest.raises(DataError) as caught:
        infer_task(labels, False, kind, where="train (a.tsv)", numbers=range(11, 11 + len(labels)))
    assert str(caught.value).startswith("train (a.tsv)")
    for part in parts:
        assert part in str(caught.value)


def test_a_label_of_its_own_for_every_row_suggests_another_column() -> None:
    with pytest.raises(DataError, match=r"1001 different labels in 1001 rows.*--label.*--task regression"):
        infer_task([f"id{n}" for n in range(1001)], False)


def test_an_unseen_label_names_itself_its_place_and_the_known_ones() -> None:
    task = Task("classification", False, tuple("abcdefghijkl"))
    with pytest.raises(DataError) as caught:
        encode_labels(["a", "z"], task, "test (t.tsv)")
    message = str(caught.value)
    assert "test (t.tsv), row 2: label 'z' does not occur in train, which knows 'a', 'b'" in message
    assert "'j' and 2 more" in message
    with pytest.raises(DataError, match="row 7: the label is missing"):
        encode_labels(["a", None], task, "test", numbers=[3, 7])
    with pytest.raises(DataError, match="row 1: 'x' is not a finite number"):
        encode_labels(["x"], Task("regression", False), "test")


def test_columns_of_words_and_answers_are_known_by_name() -> None:
    def found(*names: str, **given: Any) -> Columns:
        return find_columns(names, [], **given)

    assert found("text", "Tokens", "Slots", "Intent") == Columns(("Tokens",), "Intent", "Slots", kind="joint")
    assert found("tokens", "ner_tags") == Columns(("tokens",), "ner_tags", kind="tokens")
    assert found("id", "question", "context", "answers").kind == "qa"
    assert found("question", "context", "answer", "answer_start").start == "answer_start"
    assert found("words", "pos", kind="tokens", label="pos") == Columns(("words",), "pos", kind="tokens")
    assert found("q", "c", "a", kind="qa", text=("q", "c"), label="a") == Columns(("q", "c"), "a", kind="qa")
    assert found("text", "tokens", "slots", "intent", text=("text",), label="intent").kind is None
    with pytest.raises(DataError, match="no column is known as tags; name it with --label"):
        found("tokens", "label", kind="tokens")
    with pytest.raises(DataError, match="no column is known as intent; name it with --label"):
        found("tokens", "slots", kind="joint")
    with pytest.raises(DataError, match="give --text twice, for the question and the context"):
        found("question", "context", "answer", kind="qa", text=("question",))

from __future__ import annotations

from typing import Any

from pocketlm.report.confusion import MOST_EXAMPLES, confused_pairs, errors, examples

Pocket = dict[str, Any]


def test_pairs_are_the_worst_of_both_models_with_both_counts():
    counts = {
        "labels": ["a", "b", "c"],
        "pocket": [[5, 3, 0], [1, 9, 0], [0, 0, 2]],
        "teacher": [[8, 0, 0], [0, 8, 2], [0, 0, 2]],
    }
    pairs = confused_pairs(counts, most=1)
    assert [(p.true, p.predicted, p.pocket, p.teacher, p.of) for p in pairs] == [
        ("a", "b", 3, 0, 8),
        ("b", "c", 0, 2, 10),
    ]


def test_right_answers_are_never_a_pair(many_labels: Pocket):
    counts = many_labels["ledger"]["confusion"]
    pairs = confused_pairs(counts)
    assert 1 <= len(pairs) <= 12
    assert all(pair.true != pair.predicted for pair in pairs)
    worst = max(n for t, row in enumerate(counts["pocket"]) for p, n in enumerate(row) if t != p)
    assert pairs[0].pocket == worst


def test_no_mistakes_no_pairs():
    assert (
        confused_pairs({"labels": ["a", "b"], "pocket": [[3, 0], [0, 3]], "teacher": [[3, 0], [0, 3]]}) == []
    )


def test_one_model_may_have_no_matrix():
    (pair,) = confused_pairs({"labels": ["a", "b"], "pocket": [[3, 1], [0, 3]], "teacher": None})
    assert (pair.pocket, pair.teacher, pair.of) == (1, None, 4)
    assert errors(None) is None


def test_errors_are_what_is_off_the_diagonal(full: Pocket):
    assert errors(full["ledger"]["confusion"]["pocket"]) == 133 + 88


def test_examples_are_grouped_by_who_was_right():
    rows = [
        {"texts": ["x"], "label": "a", "teacher": "a", "pocket": "b"},
        {"texts": ["y"], "label": "b", "teacher": "a", "pocket": "b"},
        {"texts": ["z"], "label": "c", "teacher": "a", "pocket": "b"},
    ]
    groups = [
        (heading, [item.texts[0] for item in items]) for heading, items in examples(rows, classification=True)
    ]
    assert groups == [
        ("The teacher was right", ["x"]),
        ("The pocket was right", ["y"]),
        ("Both were wrong", ["z"]),
    ]
    assert [heading for heading, _ in examples(rows, classification=False)] == [""]


def test_at_most_twenty_examples_and_long_texts_are_cut():
    rows = [{"texts": ["word " * 2000], "label": "a", "teacher": "a", "pocket": "b"}] * 50
    ((_, items),) = examples(rows, classification=True)
    assert len(items) == MOST_EXAMPLES
    assert len(items[0].texts[0]) <= 280 and items[0].texts[0].endswith("…")

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.report import wording

Pocket = dict[str, Any]


def said(ledger: dict[str, Any]) -> str:
    return ", ".join(str(clause) for clause in wording.headline(ledger)).replace("\u202f", " ")


def test_the_headline_is_made_of_the_ledger(full: Pocket):
    assert said(full["ledger"]) == "11× smaller, 2.6× faster, 97.8 % of the accuracy kept"


@pytest.mark.parametrize(
    ("smaller", "faster", "expected"),
    [
        (0.5, {"median": 0.8, "low": 0.75, "high": 0.85}, "2.0× bigger, 1.2× slower"),
        (1.02, {"median": 1.01, "low": None, "high": None}, "about as big, about as fast"),
        (134.2, {"median": 1.2, "low": 0.9, "high": 1.4}, "134× smaller, about as fast"),
        (3.04, {"median": 1.2, "low": 1.1, "high": 1.4}, "3.0× smaller, 1.2× faster"),
        (None, None, ""),
        (0, {"median": None, "low": None, "high": None}, ""),
    ],
)
def test_worse_is_said_as_plainly_as_better(full: Pocket, smaller: float, faster: Any, expected: str):
    full["ledger"]["ratios"] = {"smaller_x": smaller, "faster_x": faster}
    full["ledger"]["rows"][1]["retention_pct"] = None
    assert said(full["ledger"]) == expected


@given(st.floats(1e-4, 1e4))
def test_a_ratio_and_its_inverse_say_opposite_things_with_one_figure(ratio: float):
    one = wording.comparison(ratio, "faster", "slower", "as fast")
    other = wording.comparison(1 / ratio, "slower", "faster", "as fast")
    assert one == other
    assert one.words == ("about as fast" if not one.figure else "faster" if ratio > 1 else "slower")


def test_a_retention_above_100_is_not_hidden(full: Pocket):
    full["ledger"]["rows"][1]["retention_pct"] = 101.26
    assert said(full["ledger"]).endswith("101.3 % of the accuracy kept")


def test_the_standfirst_names_both_sides_of_each_claim(full: Pocket, minimal: Pocket):
    text = " ".join(wording.standfirst(full)).replace("\u202f", " ")
    assert "8.09 MB on disk instead of 91.3 MB." in text
    assert "A text takes 4.72 ms instead of 12.3 ms" in text
    assert "Accuracy is 82.2 % instead of 84.0 % on 1 237 test examples." in text
    assert wording.standfirst(minimal) == []


@pytest.mark.parametrize(
    ("bill", "answer"),
    [
        ({"repaid_after_requests": 146_497}, "146 497 requests"),
        (
            {"request_wh_teacher": 1e-5, "request_wh_pocket": 2e-5},
            "never: a request costs no less than the teacher's",
        ),
        ({"request_wh_teacher": 2e-5, "request_wh_pocket": 1e-5}, "–"),
        ({}, "–"),
    ],
)
def test_the_bill_says_when_or_whether_it_is_repaid(bill: dict[str, Any], answer: str):
    assert wording.repaid(bill)[1].replace("\u202f", " ") == answer


@pytest.mark.parametrize(
    ("method", "word"), [("rapl", "RAPL"), ("tdp", "Estimated from TDP"), ("none", "Not measured")]
)
def test_the_energy_method_is_named(full: Pocket, method: str, word: str):
    full["ledger"]["bill"]["energy_method"] = method
    assert dict(wording.definitions(full["ledger"], pair=False))["Energy"].startswith(word)


def test_the_lamp_is_the_same_energy():
    assert wording.lamp(10.0).replace("\u202f", " ") == "A 10 W lamp burns 1 h on the energy of making it."
    assert wording.lamp(None) == ""

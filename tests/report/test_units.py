from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.report import units


def plain(text: str) -> str:
    return text.replace(units.NARROW, " ")


@given(st.floats(min_value=1e-9, max_value=1e12), st.integers(min_value=1, max_value=6))
def test_significant_digits_read_back_to_the_number_within_half_a_unit_of_the_last_digit(
    number: float, digits: int
):
    read = float(units.significant(number, digits).replace(units.NARROW, ""))
    last = 10.0 ** min(0, math.floor(math.log10(number)) - digits + 2)
    assert abs(read - number) <= 0.5 * last * (1 + 1e-9)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, True, "3", []])
def test_what_is_no_finite_number_was_not_measured(value: object):
    assert units.measured(value) is None
    for write in (
        units.megabytes,
        units.parameters,
        units.milliseconds,
        units.seconds,
        units.watt_hours,
        units.count,
    ):
        assert write(value) == "–"
    assert units.score(value, "accuracy") == "–"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (units.megabytes(91_302_144), "91.3 MB"),
        (units.megabytes(1_340_000_000), "1 340 MB"),
        (units.megabytes(9_996_000), "10.0 MB"),
        (units.parameters(22_713_986), "22.7 M"),
        (units.parameters(512), "512"),
        (units.parameters(20_412), "20.4 k"),
        (units.milliseconds(12.31), "12.3 ms"),
        (units.milliseconds(0.3123), "0.31 ms"),
        (units.milliseconds(12_345.6), "12 346 ms"),
        (units.seconds(2.44), "2.4 s"),
        (units.seconds(252), "4 min 12 s"),
        (units.seconds(240), "4 min"),
        (units.seconds(59.7), "1 min"),
        (units.seconds(3599.8), "1 h"),
        (units.seconds(7_300), "2 h 2 min"),
        (units.watt_hours(1.96e-5), "19.6 µWh"),
        (units.watt_hours(0.0196), "19.6 mWh"),
        (units.watt_hours(0), "0 Wh"),
        (units.score(0.8217, "accuracy"), "82.2 %"),
        (units.score(0.8217, "pearson"), "0.822"),
        (units.score(-0.0312, "pearson"), "\u22120.031"),
        (units.score(-0.00001, "pearson"), "0.000"),
        (units.interval(0.799, 0.843, "accuracy"), "79.9–84.3"),
        (units.interval(0.799, None, "accuracy"), ""),
        (units.metric_name("macro_f1"), "macro F1"),
    ],
)
def test_figures_are_written_with_sensible_digits(written: str, expected: str):
    assert plain(written) == expected


@given(st.text(max_size=3000), st.integers(min_value=4, max_value=300))
def test_shortened_text_is_one_line_within_the_limit_and_says_when_it_was_cut(text: str, limit: int):
    short = units.shorten(text, limit)
    assert len(short) <= limit
    assert short == " ".join(short.split())
    if " ".join(text.split()) != short:
        assert short.endswith("…")


def test_shortening_cuts_between_words_and_never_ends_in_a_joiner():
    assert units.shorten("a quiet triumph of patience", 18) == "a quiet triumph…"
    assert units.shorten("👩\u200d👩\u200d👧 x", 5) == "👩\u200d👩…"

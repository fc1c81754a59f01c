from __future__ import annotations

import math
import random
import re
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.report.labels import Box, text_width
from pocketlm.report.svg import MOST_CURVE_POINTS, TEXT_SIZE, Point, curve_picture, points, size_score_picture

Pocket = dict[str, Any]
COORDINATES = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "points", "d", "viewBox")


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def numbers(svg: str) -> list[float]:
    found: list[float] = []
    for element in parse(svg).iter():
        for name in COORDINATES:
            for number in re.split(r"[\sMhmV,]+", element.get(name, "").strip("M")):
                if number:
                    found.append(float(number.removesuffix("h8m-4")))
    return found


def label_boxes(svg: str) -> list[Box]:
    found: list[Box] = []
    for text in parse(svg).iter("text"):
        if text.get("class") not in ("label", "figures"):
            continue
        wide = text_width((text.text or "").strip("\u2068\u2069"), TEXT_SIZE)
        x, y = float(text.get("x", "nan")), float(text.get("y", "nan"))
        left = x - {"start": 0, "middle": wide / 2, "end": wide}[text.get("text-anchor", "start")]
        found.append(Box(left, y - 11, left + wide, y + 2))
    return found


figures = st.builds(
    Point,
    label=st.text(max_size=60),
    kind=st.sampled_from(["teacher", "pocket", "control"]),
    size_bytes=st.floats(1e3, 1e10),
    score=st.floats(-1, 1),
    low=st.none(),
    high=st.none(),
    p50_ms=st.one_of(st.none(), st.floats(1e-3, 1e4)),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(figures, min_size=1, max_size=6), st.sampled_from([(1136, 460), (340, 440)]))
def test_any_models_make_a_finite_picture_with_labels_apart(models: list[Point], size: tuple[int, int]):
    clean = [
        Point(
            **{
                **model.__dict__,
                "label": re.sub(r"[^\w ]|[\x00-\x1f\ud800-\udfff\ufffe\uffff]", "", model.label),
            }
        )
        for model in models
    ]
    svg = size_score_picture(clean, "accuracy", *size)
    assert all(math.isfinite(number) for number in numbers(svg))
    assert not any(one.overlaps(other) for one, other in combinations(label_boxes(svg), 2))


@pytest.mark.parametrize("size", [(1136, 460), (680, 420), (340, 440)])
def test_every_model_is_drawn_inside_and_labelled(full: Pocket, size: tuple[int, int]):
    svg = size_score_picture(points(full["ledger"]), "accuracy", *size)
    width, height = (float(number) for number in (parse(svg).get("viewBox") or "").split()[2:])
    assert width == size[0] and height >= size[1]
    assert len(parse(svg).findall("g")) == 5
    for box in label_boxes(svg):
        assert box.left >= 0 and box.right <= width and box.top >= 0 and box.bottom <= height
    for circle in parse(svg).iter("circle"):
        assert 0 <= float(circle.get("cx", "nan")) <= width and 0 <= float(circle.get("cy", "nan")) <= height


def test_smaller_is_left_better_is_up_and_slower_is_a_larger_area(full: Pocket):
    svg = parse(size_score_picture(points(full["ledger"]), "accuracy", 1136, 460))
    discs = {group.get("class"): group.find("circle") for group in svg.findall("g")[:5]}
    teacher, pocket = discs["teacher"], discs["pocket"]
    assert teacher is not None and pocket is not None
    at = {
        name: (float(d.get("cx", "")), float(d.get("cy", "")), float(d.get("r", "")))
        for name, d in (("t", teacher), ("p", pocket))
    }
    assert at["p"][0] < at["t"][0]
    assert at["p"][1] > at["t"][1]
    assert (at["t"][2] / at["p"][2]) ** 2 == pytest.approx(12.31 / 4.72, rel=0.02)


def test_twenty_models_in_one_place_still_have_labels_apart():
    crowd = [Point(f"model number {index}", "control", 8e6, 0.8, 0.7, 0.9, 4.0) for index in range(20)]
    svg = size_score_picture(crowd, "accuracy", 340, 440)
    assert len(parse(svg).findall("g")) == 20
    assert not any(one.overlaps(other) for one, other in combinations(label_boxes(svg), 2))


def test_models_of_one_size_do_not_hide_each_other(full: Pocket):
    svg = parse(size_score_picture(points(full["ledger"]), "accuracy", 1136, 460))
    places = [float(dot.get("cx", "nan")) for dot in svg.iter("circle") if dot.get("class") == "dot"]
    assert min(abs(one - other) for one, other in combinations(places, 2)) >= 9


def test_only_models_with_a_size_and_a_score_are_points(full: Pocket):
    rows = full["ledger"]["rows"]
    rows[2]["size_bytes"], rows[3]["score"], rows[4]["size_bytes"] = 0, math.nan, None
    assert [point.kind for point in points(full["ledger"])] == ["teacher", "pocket"]


def test_a_model_that_was_not_timed_says_so(full: Pocket):
    full["ledger"]["rows"][1]["p50_ms"] = None
    svg = size_score_picture(points(full["ledger"]), "accuracy", 680, 420)
    assert "pocket unclocked" in svg and "latency not measured" in svg


def test_labels_are_escaped():
    svg = size_score_picture(
        [Point("<script>&\"'", "pocket", 1e6, 0.5, None, None, 1.0)], "accuracy", 340, 440
    )
    assert "<script>" not in svg
    assert len(parse(svg).findall("g")) == 1


@pytest.mark.parametrize("metric", ["accuracy", "pearson"])
def test_ticks_are_told_apart_on_a_narrow_range(metric: str):
    models = [
        Point("a", "pocket", 1e6, 0.9991, None, None, 1.0),
        Point("b", "teacher", 1e6, 0.9993, None, None, 1.0),
    ]
    svg = parse(size_score_picture(models, metric, 680, 420))
    ticks = [t.text for t in svg.iter("text") if t.get("class") == "tick" and t.get("text-anchor") == "end"]
    assert len(ticks) >= 2 and len(set(ticks)) == len(ticks)


def test_a_curve_marks_its_best_score_and_stays_inside():
    steps = [
        {"step": s, "train_loss": 1 / (s + 1), "valid_score": v} for s, v in ((0, 0.5), (10, 0.81), (20, 0.8))
    ]
    svg = curve_picture(steps, "pocket", "accuracy", (0.5, 0.9))
    assert "best: \u206881.0\u202f%\u2069 at step 10" in svg
    xs = [
        float(pair.split(",")[0])
        for line in parse(svg).iter("polyline")
        for pair in line.get("points", "").split()
    ]
    assert min(xs) >= 0 and max(xs) <= 340


def test_nulls_and_infinities_leave_a_curve_finite():
    steps = [
        {"step": s, "train_loss": v, "valid_score": None} for s, v in ((1, math.nan), (2, 0.5), (3, math.inf))
    ]
    svg = curve_picture(steps, "teacher", "accuracy", None)
    assert all(math.isfinite(number) for number in numbers(svg))
    assert (
        curve_picture([{"step": 1, "train_loss": None, "valid_score": None}], "pocket", "accuracy", None)
        == ""
    )
    assert curve_picture([], "pocket", "accuracy", None) == ""


def test_a_long_run_is_thinned_with_both_ends_kept():
    chance = random.Random(0)
    steps = [{"step": s, "train_loss": chance.random(), "valid_score": None} for s in range(1, 5001)]
    drawn = parse(curve_picture(steps, "pocket", "accuracy", None)).find("polyline")
    assert drawn is not None
    path = drawn.get("points", "").split()
    assert len(path) == MOST_CURVE_POINTS
    assert path[-1].startswith("334.0,")
    assert "5\u202f000 steps" in curve_picture(steps, "pocket", "accuracy", None)

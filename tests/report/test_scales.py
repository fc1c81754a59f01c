from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from pocketlm.report.scales import nice_ticks, padded, scale, size_ticks, spread


@given(st.floats(-1, 1), st.floats(1e-3, 2))
@example(low=6.6e-75, span=0.3)
def test_ticks_are_inside_evenly_spaced_and_a_few(low: float, span: float):
    ticks = nice_ticks(low, low + span)
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= low + span + 1e-9 for tick in ticks)
    gaps = [after - before for before, after in pairwise(ticks)]
    assert max(gaps) - min(gaps) < 1e-9


@given(st.floats(3, 10), st.floats(0.3, 5))
def test_size_ticks_are_inside_and_rise(low: float, span: float):
    ticks = size_ticks(low, low + span)
    assert ticks == sorted(set(ticks))
    assert ticks
    assert all(low <= math.log10(tick) <= low + span for tick in ticks)


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=8))
def test_spreading_moves_nobody_to_the_left_and_nobody_far(places: list[float]):
    moved = spread(places)
    assert all(0 <= after - before <= 30 + 1e-9 for before, after in zip(places, moved, strict=True))


def test_two_in_one_place_are_set_apart_in_their_order():
    assert spread([100.0, 100.0, 300.0]) == [100, 110, 300]


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(1e-3, 1))
def test_padding_holds_the_range_and_is_wide_enough(low: float, span: float, least: float):
    start, end = padded(low, low + span, least)
    assert start <= low + 1e-9 and low + span <= end + 1e-9
    assert end - start >= 2 * least - 1e-9


def test_a_scale_maps_ends_to_ends_and_an_empty_range_to_the_middle():
    assert [scale(value, 0, 10, 100, 0) for value in (0, 5, 10)] == [100, 50, 0]
    assert scale(3, 3, 3, 0, 10) == 5

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.report.labels import Anchor, Box, place, text_width

FRAME = Box(0, 0, 600, 400)
anchors = st.lists(
    st.builds(
        Anchor,
        x=st.floats(30, 570),
        y=st.floats(30, 370),
        radius=st.floats(3, 26),
        width=st.floats(40, 160),
        height=st.just(32.0),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=40, deadline=None)
@given(anchors)
def test_labels_lie_in_the_frame_and_never_on_each_other_or_on_a_disc(discs: list[Anchor]):
    placed = place(discs, FRAME, [])
    if placed is None:
        return
    for label, anchor in zip(placed, discs, strict=True):
        assert FRAME.holds(label.box)
        assert abs(label.box.right - label.box.left - anchor.width) < 1e-6
        assert not any(label.box.overlaps(other.box) for other in discs)
    assert not any(one.box.overlaps(other.box) for one, other in combinations(placed, 2))


def test_a_lonely_label_stands_right_beside_its_point():
    (placed,) = place([Anchor(100, 200, 10, 80, 32)], FRAME, []) or ()
    assert (placed.align, placed.box.left) == ("start", 115)


def test_a_label_avoids_an_obstacle_where_there_is_room_beside_it():
    (placed,) = place([Anchor(300, 200, 10, 80, 32)], FRAME, [Box(312, 0, 600, 400)]) or ()
    assert placed.box.right <= 312


def test_a_frame_too_small_for_a_label_is_none():
    assert place([Anchor(10, 10, 3, 80, 32)], Box(0, 0, 50, 50), []) is None


def test_wide_characters_are_counted_wide():
    assert text_width("漢字", 10) == 22
    assert text_width("ab", 10) == 12

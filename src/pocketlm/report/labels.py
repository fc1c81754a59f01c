"""Where the labels of a picture go: near their points, inside the frame, never over each other."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

Align = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Box:
    """A rectangle in picture units; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """True where the two share more than an edge."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        """True where `other` lies inside."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the rectangle nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


@dataclass(frozen=True)
class Anchor:
    """A disc with a label of `width` by `height`."""

    x: float
    y: float
    radius: float
    width: float
    height: float

    @property
    def box(self) -> Box:
        """The square around the disc."""
        return Box(self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


@dataclass(frozen=True)
class Placed:
    """Where a label stands and on which side its text is flush."""

    box: Box
    align: Align


def text_width(text: str, size: float) -> float:
    """An upper estimate of the width of `text` in a sans-serif of `size`: its font is not known here."""
    return size * sum(
        1.1 if unicodedata.east_asian_width(c) in "WF" or ord(c) > 0xFFFF else 0.6 for c in text
    )


def place(anchors: Sequence[Anchor], frame: Box, obstacles: Sequence[Box]) -> list[Placed] | None:
    """Give every label a place near its anchor, free of discs and other labels, and off the obstacles.

    Labels choose one after the other; of several orders the one with the least total cost is kept.

    Args:
        anchors: Discs with their labels' sizes.
        frame: Labels stay inside.
        obstacles: Things a label should not cover but may, at a cost.

    Returns:
        One place an anchor, in their order, or None where the frame is too small.
    """
    discs = [anchor.box for anchor in anchors]
    choices = [
        sorted(
            (cost + OBSTACLE_COST * sum(p.box.overlaps(box) for box in obstacles), index, p)
            for index, (cost, p) in enumerate(_candidates(anchor, frame))
            if not any(p.box.overlaps(disc) for disc in discs)
        )
        for anchor in anchors
    ]
    results = [result for order in _orders(len(anchors)) if (result := _choose(choices, order)) is not None]
    return min(results, key=lambda result: result[0])[1] if results else None


OBSTACLE_COST = 14.0
FAR_COST = 20.0
# Beside the point first, then below and above it, then the diagonals; angles in degrees, clockwise.
_ANGLES = (0, 180, 90, 270, 35, 325, 145, 215, 60, 300, 120, 240)
_GAPS = (5.0, 10.0, 18.0, 30.0, 46.0)

_Choice = tuple[float, int, Placed]


def _orders(number: int) -> Iterator[tuple[int, ...]]:
    """All orders of a few; of many, each in turn goes first."""
    if number <= 5:
        yield from permutations(range(number))
    else:
        yield from (tuple((first + index) % number for index in range(number)) for first in range(number))


def _choose(choices: Sequence[Sequence[_Choice]], order: Sequence[int]) -> tuple[float, list[Placed]] | None:
    chosen: dict[int, Placed] = {}
    total = 0.0
    for index in order:
        taken = [placed.box for placed in chosen.values()]
        best = next((c for c in choices[index] if not any(c[2].box.overlaps(box) for box in taken)), None)
        if best is None:
            return None
        total += best[0]
        chosen[index] = best[2]
    return total, [chosen[index] for index in range(len(choices))]


def _candidates(anchor: Anchor, frame: Box) -> Iterator[tuple[float, Placed]]:
    """Places for a label with what each costs: its distance, and a little for a less usual side."""
    for gap in _GAPS:
        for preference, degrees in enumerate(_ANGLES):
            placed = _beside(anchor, gap, math.radians(degrees))
            if frame.holds(placed.box):
                yield gap + preference / 2, placed
    rows = int((frame.bottom - frame.top - anchor.height) // 10) + 1
    steps = int((frame.right - frame.left - anchor.width) // 24) + 1
    for row in range(rows):
        for step in range(steps):
            left, top = frame.left + 24 * step, frame.top + 10 * row
            box = Box(left, top, left + anchor.width, top + anchor.height)
            apart = math.dist(box.nearest(anchor.x, anchor.y), (anchor.x, anchor.y)) - anchor.radius
            yield FAR_COST + apart, Placed(box, "start")


def _beside(anchor: Anchor, gap: float, angle: float) -> Placed:
    reach = anchor.radius + gap
    x, y = anchor.x + reach * math.cos(angle), anchor.y + reach * math.sin(angle)
    across, down = math.cos(angle), math.sin(angle)
    align: Align = "start" if across > 0.3 else "end" if across < -0.3 else "middle"
    left = x - {"start": 0.0, "middle": anchor.width / 2, "end": anchor.width}[align]
    top = y - (0.0 if down > 0.3 else anchor.height if down < -0.3 else anchor.height / 2)
    return Placed(Box(left, top, left + anchor.width, top + anchor.height), align)

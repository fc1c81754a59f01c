"""From figures to places on an axis, and the round values to mark there."""

from __future__ import annotations

import math
from collections.abc import Sequence


def scale(value: float, low: float, high: float, start: float, end: float) -> float:
    """Map [low, high] onto [start, end]; the middle where the range is empty."""
    return (start + end) / 2 if high == low else start + (value - low) / (high - low) * (end - start)


def spread(places: Sequence[float], gap: float = 10.0) -> list[float]:
    """Move places that coincide to the right, `gap` apart and at most three gaps from where they belong."""
    spread, last = list(places), -math.inf
    for index in sorted(range(len(places)), key=lambda index: places[index]):
        spread[index] = last = min(max(places[index], last + gap), places[index] + 3 * gap)
    return spread


def padded(low: float, high: float, least: float) -> tuple[float, float]:
    """The range, widened to at least `2 * least` about its middle."""
    if high - low >= 2 * least:
        return low, high
    middle = (low + high) / 2
    return middle - least, middle + least


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to eight round values over [low, high], which is not empty."""
    third = (high - low) / 3 * (1 + 1e-9)  # a third of 0.3 is a little less than 0.1
    power = 10.0 ** math.floor(math.log10(third))
    step = max(power * factor for factor in (1, 2, 5) if power * factor <= third)
    # An end that is a multiple of the step but for its rounding is one.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def size_ticks(low: float, high: float) -> list[float]:
    """Round sizes over 10^low to 10^high bytes: powers of ten, and more where the range is short."""
    exponents = range(math.floor(low), math.floor(high) + 1)
    coarse = ((1,),) if high - low > 3 else ((1, 3),) if high - low > 1.6 else ()
    ticks: list[float] = []
    for factors in (*coarse, (1, 2, 5), range(1, 10), [tenth / 10 for tenth in range(10, 100)]):
        ticks = [f * 10.0**e for e in exponents for f in factors if low <= math.log10(f * 10.0**e) <= high]
        if len(ticks) > 1:
            break
    return ticks

"""Which of many examples are read where not all can be.

Data often stand in the order of their labels, so the first rows are no sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread, ascending."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, most))}) if count else []


def few(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of some items, evenly spread, in their order."""
    return [items[index] for index in spread(len(items), most)]


def passes(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` of `count` indices: pass after pass over all of them, each in an order of its own."""
    orders = [np.random.default_rng((seed, done)).permutation(count) for done in range(0, wanted, count)]
    return [int(index) for order in orders for index in order][:wanted]

"""Align the pieces of two tokenizers by the characters they cover.

Teacher and student read the same text in different pieces. What the teacher says of a student's
piece is what it says of its own piece that covers the student piece's first character.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter

from pocketlm.tokenization.encode import Encoded

UNALIGNED = -1


def align(student: Encoded, teacher: Encoded, index: int) -> list[int]:
    """Teacher position for every student position of one example; -1 where there is none.

    Special tokens are matched in order, first to first. A piece has no counterpart where the
    teacher's input was cut before it.

    Args:
        student: Examples in the student's pieces.
        teacher: The same examples in the teacher's pieces.
        index: Which example.
    """
    twins: dict[tuple[int, tuple[int, int]], list[int]] = {}
    ends: dict[int, list[int]] = {-1: [], 0: [], 1: []}
    positions: dict[int, list[int]] = {-1: [], 0: [], 1: []}
    for position, (origin, span) in enumerate(zip(teacher.origins[index], teacher.spans[index], strict=True)):
        twins.setdefault((origin, span), []).append(position)
        ends[origin].append(span[1])
        positions[origin].append(position)
    result: list[int] = []
    specials = iter(positions[-1])
    met: Counter[tuple[int, tuple[int, int]]] = Counter()
    for origin, span in zip(student.origins[index], student.spans[index], strict=True):
        same = twins.get((origin, span))
        if origin == -1:
            result.append(next(specials, UNALIGNED))
        elif same:
            # The bytes of one character have one span, so pieces of the same span go in order.
            result.append(same[min(met[origin, span], len(same) - 1)])
            met[origin, span] += 1
        else:
            found = bisect_right(ends[origin], span[0])
            result.append(positions[origin][found] if found < len(ends[origin]) else UNALIGNED)
    return result

"""Align the pieces of two tokenizers by the characters they cover.

Teacher and student read the same text in different pieces. What the teacher says of a student's
piece is what it says of its own piece that covers the student piece's first character.
"""

from __future__ import annotations

from bisect import bisect_right

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
    starts: dict[int, list[int]] = {-1: [], 0: [], 1: []}
    positions: dict[int, list[int]] = {-1: [], 0: [], 1: []}
    for position, (origin, span) in enumerate(zip(teacher.origins[index], teacher.spans[index], strict=True)):
        starts[origin].append(span[0])
        positions[origin].append(position)
    ends = {
        origin: teacher.spans[index][places[-1]][1] if places else 0 for origin, places in positions.items()
    }
    result: list[int] = []
    specials = iter(positions[-1])
    for origin, (start, _) in zip(student.origins[index], student.spans[index], strict=True):
        if origin == -1:
            result.append(next(specials, UNALIGNED))
            continue
        found = bisect_right(starts[origin], start) - 1
        covered = found >= 0 and start < max(ends[origin], 1)
        result.append(positions[origin][found] if covered else UNALIGNED)
    return result

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.runtime.windows import windows
from tests.tiny import KINDS, NO_DEADLINE, texts, tokenizer


@pytest.mark.parametrize("kind", KINDS)
@given(question=texts, context=texts, length=st.integers(8, 24))
@NO_DEADLINE
def test_windows_show_every_piece_of_a_context_and_are_short_enough(
    kind: str, question: str, context: str, length: int
) -> None:
    mine = tokenizer(kind)
    (found,) = windows(mine, [(question, context)], length)
    whole = mine.encode(question, context)
    seen: set[tuple[int, int, int]] = set()
    for window in found:
        assert len(window) <= length
        pieces = list(zip(window.ids, window.origins, window.spans, strict=True))
        seen |= {(piece, *span) for piece, origin, span in pieces if origin == 1}
        assert window.origins.count(0) == found[0].origins.count(0), "the question stands before each"
    parts = zip(whole.ids, whole.sequence_ids, whole.offsets, strict=True)
    assert seen == {(piece, *span) for piece, origin, span in parts if origin == 1}


@pytest.mark.parametrize("kind", KINDS)
@given(question=texts, context=texts)
@NO_DEADLINE
def test_a_short_pair_is_one_window_and_as_the_tokenizer_reads_it(
    kind: str, question: str, context: str
) -> None:
    mine = tokenizer(kind)
    whole = mine.encode(question, context)
    (found,) = windows(mine, [(question, context)], 2 * len(whole) + 8)
    assert [window.ids for window in found] == [whole.ids]
    assert found[0].type_ids == whole.type_ids and found[0].spans == whole.offsets
    assert [None if origin == -1 else origin for origin in found[0].origins] == whole.sequence_ids


def test_windows_overlap_by_a_quarter() -> None:
    (found,) = windows(tokenizer(), [("film", "a " * 30)], 16)
    starts = [min(start for start, _ in window.spans[3:-1]) for window in found]
    assert starts[:3] == [0, 18, 36]  # 12 pieces fit, 3 of them come again, and each is 2 characters


def test_a_question_keeps_at_most_half() -> None:
    (found,) = windows(tokenizer(), [("film " * 40, "a quiet plot")], 13)
    assert found[0].origins.count(0) == 5
    assert len(found) == 1

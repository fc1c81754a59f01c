from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given

from pocketlm.tasks.task import Task
from pocketlm.tasks.words import MISSING, WordSums, first_pieces, words_of
from tests.tiny import KINDS, NO_DEADLINE, texts, tokenizer

TOKENS = Task("tokens", pair=False, tags=("B-x", "I-x", "O"))
QUESTION = Task("qa", pair=True)


@given(texts)
@NO_DEADLINE
def test_words_of_a_tagged_text_are_its_runs(text: str) -> None:
    assert [text[start:end] for start, end in words_of(TOKENS, (text,))] == text.split()


@given(texts)
@NO_DEADLINE
def test_words_of_a_context_hold_every_letter_once_and_no_blank(text: str) -> None:
    words = words_of(QUESTION, ("who?", text))
    assert "".join(text[start:end] for start, end in words) == "".join(text.split())
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(words))


def test_words_of_a_context_are_letters_or_one_sign() -> None:
    context = "In 1912 (or so), Señor Ñu's café: 日本 😀."
    words = [context[start:end] for start, end in words_of(QUESTION, ("?", context))]
    assert words == [
        *("In", "1912", "(", "or", "so", ")", ",", "Señor", "Ñu", "'", "s", "café", ":", "日本", "😀", "."),
    ]


def test_a_text_task_has_no_words() -> None:
    assert words_of(Task("classification", False, ("a", "b")), ("a b",)) == []


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
@NO_DEADLINE
def test_a_words_first_piece_is_the_first_that_covers_one_of_its_characters(kind: str, text: str) -> None:
    encoding = tokenizer(kind).encode("a film", text)
    origins = [-1 if origin is None else origin for origin in encoding.sequence_ids]
    words = words_of(QUESTION, ("a film", text))
    found = first_pieces(words, 1, origins, encoding.offsets)
    for (start, end), place in zip(words, found, strict=True):
        wanted = [
            piece
            for piece, (origin, (left, right)) in enumerate(zip(origins, encoding.offsets, strict=True))
            if origin == 1 and set(range(start, end)) & set(range(left, right))
        ]
        assert place == (wanted[0] if wanted else MISSING)


def test_words_behind_a_cut_are_missing() -> None:
    encoding = tokenizer().encode("quiet film plot")
    words = words_of(TOKENS, ("quiet film plot",))
    assert first_pieces(words, 0, [-1, 0, 0, -1], [(0, 0), *encoding.offsets[1:3], (0, 0)]) == [1, 2, MISSING]


def test_a_word_in_two_windows_gets_the_mean_and_one_in_none_is_not_known() -> None:
    sums = WordSums(TOKENS, [("a b",), ("c d e",)])
    window = np.arange(12, dtype=np.float32).reshape(4, 3)
    sums.add(1, [1, 2, MISSING], window)
    sums.add(1, [MISSING, 1, MISSING], window)
    logits = sums.logits(np.zeros((2, 0), dtype=np.float32))
    assert len(logits) == 2 and logits.offsets.tolist() == [0, 2, 5]
    assert logits.known.tolist() == [False, False, True, True, False]
    words, known = logits.of(1)
    assert known.tolist() == [True, True, False]
    assert words.tolist() == [[3, 4, 5], [4.5, 5.5, 6.5], [0, 0, 0]]


def test_no_examples() -> None:
    assert len(WordSums(TOKENS, []).logits(np.zeros((0, 0), dtype=np.float32))) == 0

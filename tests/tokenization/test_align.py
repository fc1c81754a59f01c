from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pocketlm.tokenization.align import UNALIGNED, align
from pocketlm.tokenization.encode import Encoded, encode
from pocketlm.tokenization.trim import trim
from tests.tiny import KINDS, NO_DEADLINE, sentences, texts, tokenizer

LONG = 512
examples = st.one_of(texts.map(lambda text: (text,)), st.tuples(texts, texts))
TRAINING = [(sentence,) for sentence in sentences(40, seed=3)]


@pytest.fixture(scope="module")
def students() -> dict[str, list[Tokenizer]]:
    return {
        kind: [trim(tokenizer(kind), TRAINING, size).tokenizer for size in (0, 150, 220)] for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
@given(text=examples)
@example(text=("",))
@example(text=("", ""))
@example(text=("😀 the  film ", "日本 x"))
@example(text=(" ",))
@NO_DEADLINE
def test_a_tokenizer_aligns_with_itself(kind: str, text: tuple[str, ...]) -> None:
    encoded = encode(tokenizer(kind), [text], LONG)
    assert align(encoded, encoded, 0) == list(range(encoded.lengths[0]))


@pytest.mark.parametrize("kind", KINDS)
@given(text=examples)
@example(text=("",))
@example(text=("naïveté 😀ed  unlovely", "日本映画 👩‍👩‍👧 "))
@NO_DEADLINE
def test_a_piece_gets_the_teachers_piece_over_its_characters(
    students: dict[str, list[Tokenizer]], kind: str, text: tuple[str, ...]
) -> None:
    teacher = encode(tokenizer(kind), [text], LONG)
    for tokens in students[kind]:
        student = encode(tokens, [text], LONG)
        aligned = align(student, teacher, 0)
        assert len(aligned) == student.lengths[0]
        for place, position in enumerate(aligned):
            assert position != UNALIGNED
            assert student.origins[0][place] == teacher.origins[0][position]
            if student.origins[0][place] == -1:
                continue
            start, end = student.spans[0][place]
            covering = teacher.spans[0][position]
            # The teacher's byte pieces may drop the space before a word that the student spells alone.
            assert covering[0] <= start < covering[1] or (start == end and start <= covering[0])


@pytest.mark.parametrize("kind", KINDS)
@given(text=examples)
@NO_DEADLINE
def test_alignment_never_goes_back(
    students: dict[str, list[Tokenizer]], kind: str, text: tuple[str, ...]
) -> None:
    teacher = encode(tokenizer(kind), [text], LONG)
    for tokens in students[kind]:
        aligned = align(encode(tokens, [text], LONG), teacher, 0)
        assert aligned == sorted(aligned)


@pytest.mark.parametrize("kind", KINDS)
@given(text=examples, length=st.integers(6, 20))
@NO_DEADLINE
def test_nothing_stands_beyond_the_teachers_cut(
    students: dict[str, list[Tokenizer]], kind: str, text: tuple[str, ...], length: int
) -> None:
    cut = encode(tokenizer(kind), [text], length)
    student = encode(students[kind][1], [text], LONG)
    reach = {origin: 0 for origin in (0, 1)}
    for origin, (_, end) in zip(cut.origins[0], cut.spans[0], strict=True):
        if origin != -1:
            reach[origin] = max(reach[origin], end)
    for place, position in enumerate(align(student, cut, 0)):
        origin, (start, end) = student.origins[0][place], student.spans[0][place]
        if origin == -1:
            assert cut.origins[0][position] == -1
        elif position == UNALIGNED:
            assert end >= reach[origin]
        else:
            covering = cut.spans[0][position]
            assert cut.origins[0][position] == origin
            assert covering[0] <= start < covering[1] or (start == end and start <= covering[0])


def test_a_cut_text_has_no_counterpart_and_its_special_tokens_have() -> None:
    text = ("a quiet film of the plot",)
    student, teacher = encode(tokenizer(), [text], LONG), encode(tokenizer(), [text], 5)
    assert align(student, teacher, 0) == [0, 1, 2, 3, -1, -1, -1, 4]


def test_both_texts_of_a_pair_keep_to_themselves() -> None:
    text = ("quiet plot", "quiet plot of it")
    student, teacher = encode(tokenizer(), [text], LONG), encode(tokenizer(), [text], 7)
    # [CLS] quiet plot [SEP] quiet plot of it [SEP] against [CLS] quiet plot [SEP] quiet plot [SEP]
    assert align(student, teacher, 0) == [0, 1, 2, 3, 4, 5, -1, -1, 6]


def test_finer_pieces_share_the_teachers_piece() -> None:
    student = Encoded(
        ids=[[0] * 6], type_ids=[[0] * 6], origins=[[-1, 0, 0, 0, 0, -1]],
        spans=[[(0, 0), (0, 2), (2, 5), (6, 7), (7, 9), (0, 0)]],
    )  # fmt: skip
    teacher = Encoded(
        ids=[[0] * 4], type_ids=[[0] * 4], origins=[[-1, 0, 0, -1]], spans=[[(0, 0), (0, 5), (6, 9), (0, 0)]]
    )
    assert align(student, teacher, 0) == [0, 1, 1, 2, 2, 3]
    # And the coarser one takes the piece over its first character.
    assert align(teacher, student, 0) == [0, 1, 3, 5]


def test_a_student_with_more_special_tokens_is_left_without_counterpart() -> None:
    student = Encoded([[0] * 3], [[0] * 3], [[-1, -1, -1]], [[(0, 0)] * 3])
    teacher = Encoded([[0] * 2], [[0] * 2], [[-1, -1]], [[(0, 0)] * 2])
    assert align(student, teacher, 0) == [0, 1, UNALIGNED]


def test_every_example_is_aligned_by_its_own_pieces() -> None:
    chance = random.Random(5)
    many = [(text,) for text in sentences(8, seed=chance.randint(0, 99))]
    student = encode(trim(tokenizer(), TRAINING, 0).tokenizer, many, LONG)
    teacher = encode(tokenizer(), many, LONG)
    for index, text in enumerate(many):
        alone = align(
            encode(trim(tokenizer(), TRAINING, 0).tokenizer, [text], LONG),
            encode(tokenizer(), [text], LONG),
            0,
        )
        assert align(student, teacher, index) == alone

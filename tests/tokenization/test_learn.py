from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.tokenization.encode import encode, pad_id
from pocketlm.tokenization.learn import learn
from tests.tiny import NO_DEADLINE, sentences, texts, tokenizer
from tests.tiny_models import tokenizer_of

CORPUS = [*((text,) for text in sentences(300)), ("café 日本 😀!", "naïve"), ("",)]


@pytest.mark.parametrize("teacher", [tokenizer("wordpiece"), tokenizer_of("mpnet")])
def test_special_tokens_and_their_places_are_the_teachers(teacher) -> None:
    learned = learn(teacher, CORPUS, 200)
    for pair in (("a film",), ("a film", "the plot"), ("",)):
        ours, theirs = encode(learned, [pair], 64), encode(teacher, [pair], 64)

        def special(encoded, tokens):
            return [
                tokens.id_to_token(piece)
                for piece, origin in zip(encoded.ids[0], encoded.origins[0], strict=True)
                if origin == -1
            ]

        assert special(ours, learned) == special(theirs, teacher)
    assert learned.id_to_token(pad_id(learned)) == teacher.id_to_token(pad_id(teacher))
    assert sorted(learned.get_vocab().values()) == list(range(learned.get_vocab_size()))


@pytest.mark.parametrize("size", [150, 180, 200])
def test_the_size_is_as_asked_where_there_is_enough_text(size: int) -> None:
    assert learn(tokenizer("wordpiece"), CORPUS, size).get_vocab_size() == size


def test_frequent_words_become_pieces_and_the_same_text_the_same_vocabulary() -> None:
    corpus = [("zebra crossing",)] * 50 + [("quiet zebra",)] * 20
    learned = learn(tokenizer("wordpiece"), corpus, 130)
    assert learned.encode("zebra", add_special_tokens=False).tokens == ["zebra"]
    for _ in range(5):
        assert learn(tokenizer("wordpiece"), corpus, 130).get_vocab() == learned.get_vocab()


@NO_DEADLINE
@given(st.lists(texts, min_size=1, max_size=5))
def test_only_what_the_teacher_cannot_spell_is_unknown(corpus) -> None:
    teacher = tokenizer("wordpiece")
    learned = learn(teacher, [(text,) for text in corpus], 10)
    for text in corpus:
        unknown = [tokens.encode(text).tokens.count("[UNK]") for tokens in (learned, teacher)]
        assert unknown[0] == unknown[1]


@NO_DEADLINE
@given(texts)
def test_words_are_split_where_the_teacher_splits_them(text: str) -> None:
    teacher = tokenizer("wordpiece")
    learned = learn(teacher, CORPUS, 200)

    def starts(tokens):
        encoding = tokens.encode(text, add_special_tokens=False)
        return [
            s for s, t in zip(encoding.offsets, encoding.tokens, strict=True) if t[:2] != "##"
        ], encoding.word_ids

    (ours, words), (theirs, their_words) = starts(learned), starts(teacher)
    assert [start for start, _ in ours] == [start for start, _ in theirs]
    assert len(set(words)) == len(set(their_words))

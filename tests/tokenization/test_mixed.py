from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.tokenization.encode import encode
from pocketlm.tokenization.learn import learn
from pocketlm.tokenization.mixed import mix, segment
from tests.tiny import NO_DEADLINE, sentences, texts, tokenizer

TEACHER = tokenizer("wordpiece")
STUDENT = learn(TEACHER, [(text,) for text in sentences(200)], 100)
OFFSET = TEACHER.get_vocab_size()
EXAMPLES = st.lists(st.tuples(texts) | st.tuples(texts, texts), min_size=1, max_size=3)


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@NO_DEADLINE
@given(EXAMPLES)
def test_none_mixed_is_the_teachers_encoding_and_all_mixed_the_students(examples) -> None:
    theirs, ours = encode(TEACHER, examples, 64), encode(STUDENT, examples, 1000)
    for row, words in enumerate(segment(TEACHER, STUDENT, examples, 64)):
        plain = mix(words, 0.0, OFFSET, chance(), 64)
        assert plain == (theirs.ids[row], theirs.type_ids[row], theirs.origins[row])
        if len(theirs.ids[row]) < 64:
            ids, types, origins = mix(words, 1.0, OFFSET, chance(), 1000)
            assert origins == ours.origins[row] and types == ours.type_ids[row]
            mine = [
                piece for piece, origin in zip(ours.ids[row], ours.origins[row], strict=True) if origin >= 0
            ]
            assert [piece - OFFSET for piece in ids if piece >= OFFSET] == mine


@NO_DEADLINE
@given(EXAMPLES, st.floats(0, 1), st.integers(0, 99))
def test_words_stay_whole_and_in_order(examples, p_dt: float, seed: int) -> None:
    for words in segment(TEACHER, STUDENT, examples, 16):
        ids, types, origins = mix(words, p_dt, OFFSET, chance(seed), 24)
        assert len(ids) == len(types) == len(origins) <= 24
        left = list(ids)
        for word in words:
            ours = [OFFSET + piece for piece in word.student]
            form = ours if word.student and left[: len(ours)] == ours else list(word.teacher)
            assert left[: len(form)] == form
            left = left[len(form) :]
        assert not left


def test_words_are_mixed_as_often_as_asked() -> None:
    (words,) = segment(TEACHER, STUDENT, [("film " * 2000,)], 4000)
    ids, _, _ = mix(words, 0.5, OFFSET, chance(), 9000)
    assert 900 < ids.count(TEACHER.token_to_id("film")) < 1100
    assert mix(words, 0.5, OFFSET, chance(), 9000)[0] == ids


@pytest.mark.parametrize("examples", [[("",)], [("", "")], [(" ", "film")]])
def test_empty_texts_are_their_special_tokens(examples) -> None:
    ((*words,),) = segment(TEACHER, STUDENT, examples, 16)
    assert mix(words, 0.0, OFFSET, chance(), 16)[0] == TEACHER.encode(*examples[0]).ids

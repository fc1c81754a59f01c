from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketlm.models.masked_lm import MaskedLM
from pocketlm.models.word_candidates import nearest_words, static_vectors, whole_words, word_candidates
from pocketlm.progress import Quiet
from tests.models.test_masked_lm import masked_lm
from tests.tiny import KINDS, Kind, sentences, tokenizer

TEXTS = [
    *((text,) for text in sentences(8)),
    ("A quiet, 'Triumph'  of the reworked film!",),
    ("unseenword 😀 映画 naïve film-maker 4th",),
    ("",),
]


def content(lm: MaskedLM, guessing: MaskedLM | None, texts=TEXTS, count: int = 4):
    return word_candidates(lm, guessing, texts, count, Quiet())


@pytest.mark.parametrize("kind", KINDS)
def test_whole_words_are_pieces_that_spell_themselves(kind: Kind) -> None:
    tokens = tokenizer(kind)
    words = whole_words(tokens)
    assert len(words) == tokens.get_vocab_size()
    found = [(piece, word) for piece, word in enumerate(words) if word is not None]
    assert "film" in dict(found).values()
    for piece, word in found:
        assert word.isalpha()
        spelled = [tokens.encode(before + word, add_special_tokens=False).ids for before in ("", " ")]
        assert [piece] in spelled


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet"])
def test_words_of_content_get_other_words(architecture) -> None:
    lm = masked_lm(architecture)
    for guessing in (lm, None):
        for example, (known,) in zip(TEXTS, content(lm, guessing), strict=True):
            words = example[0].split()
            for index, options in known.items():
                own = words[index].strip("',!").casefold()
                assert own.isalpha() and own not in ("the", "of", "a", "never")
                assert len(options) <= 4 and own not in [option.casefold() for option in options]
                assert all(option.isalpha() for option in options)
    by_index = content(lm, lm)[8][0]
    assert set(by_index) == {1, 2, 5, 6}  # quiet Triumph reworked film


def test_words_of_one_piece_are_guessed_and_others_looked_up() -> None:
    lm = masked_lm()
    known = content(lm, lm)[9][0]  # unseenword is of many pieces
    near = content(lm, None)[9][0]
    assert known[0] == near[0] and set(known) == {0, 2, 3}
    # Guessed is what the model holds likely where the word is masked.
    alone = [("naïve",)]
    encoded = lm.encode(alone)
    read = [[encoded.ids[0][0], lm.mask_id, encoded.ids[0][2]]]
    logits = lm.model(**lm.inputs(read, encoded.type_ids)).logits[0, 1]
    words = whole_words(lm.tokenizer)
    best = [words[piece] for piece in logits.argsort(descending=True).tolist() if words[piece]]
    wanted = [word for word in best if word != "naïve"][:4]
    assert content(lm, lm, alone)[0][0][0] == wanted


def test_pairs_keep_their_sides() -> None:
    lm = masked_lm()
    pairs = [("quiet film", "the"), ("the", "loud plot")]
    found = content(lm, lm, pairs)
    assert [[set(side) for side in example] for example in found] == [[{0, 1}, set()], [set(), {0, 1}]]


def test_a_text_longer_than_the_model_reads_is_looked_up_behind_the_cut() -> None:
    lm = masked_lm()
    text = " ".join(["film"] * 40 + ["plot", "story"])
    ((found,),) = content(lm, lm, [(text,)])
    assert set(found) == set(range(42))
    assert set(found[40]) <= {"film", "story"}


def test_neighbours_are_those_of_largest_cosine() -> None:
    lm = masked_lm()
    words = ["film", "movie", "plot", "understand", "reworked"]
    vectors = static_vectors(lm, words)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    found = nearest_words(lm, ["film", "movies"], words, 3)
    order = np.argsort(-(vectors @ vectors[0]))
    assert found["film"] == [words[place] for place in order if place != 0][:3]
    assert len(found["movies"]) == 3
    with torch.no_grad():
        table = lm.model.get_input_embeddings().weight
        film, movie = lm.tokenizer.token_to_id("film"), lm.tokenizer.token_to_id("movie")
        table[movie] = table[film] * 1.1
    assert nearest_words(lm, ["film"], words, 1)["film"] == ["movie"]

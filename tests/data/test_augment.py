from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.data.augment import (
    OPERATIONS,
    Augmenter,
    Rates,
    UnseenWords,
    WordClasses,
    augmented,
    core_of,
    count_words,
    crossover,
    is_replaceable,
    like_case,
    mask_words,
    replace_drawn,
    replace_words,
    span_of,
    words_of,
)
from pocketlm.data.unlabeled import normalised
from tests.tiny import sentences
from tests.tiny import texts as any_text

SINGLE = [(text,) for text in sentences(60, seed=1)]
PAIRS = list(zip(sentences(60, seed=2), sentences(60, seed=3), strict=True))
SPLIT = st.lists(any_text.map(lambda text: text.split()).filter(bool), min_size=1, max_size=4)
ALL = dict.fromkeys(OPERATIONS, 1.0)


def augmenter(texts, **options) -> Augmenter:
    candidates = [
        [{index: ["other", "Film"] for index in range(len(words_of(text)))} for text in example]
        for example in texts
    ]
    return Augmenter(texts, candidates, mask="[MASK]", vocabulary=["tea", "river"], **options)


@given(st.text(max_size=8))
def test_a_word_is_what_stands_around_its_core(word: str) -> None:
    parts = core_of(word)
    if parts is None:
        assert not any(character.isalnum() for character in word)
    else:
        assert "".join(parts) == word
        assert parts[1][0].isalnum() or parts[1][0] == "_"


def test_only_content_words_are_replaced() -> None:
    words = ["film", "naïve", "映画", "the", "Not", "4th", "don't", "x2"]
    assert [is_replaceable(word) for word in words] == [True, True, True, *[False] * 5]


def test_capitals_stay() -> None:
    assert [like_case("film", example) for example in ("Movie", "MOVIE", "movie", "A")] == [
        "Film", "FILM", "film", "Film",
    ]  # fmt: skip


@given(SPLIT, st.integers(0, 99))
def test_the_number_of_words_stays_where_words_are_replaced(texts, seed: int) -> None:
    counts = count_words((" ".join(words),) for words in texts)
    classes, unseen = WordClasses(counts), UnseenWords(["naïve", "日本"], counts)
    for words in texts:
        options = {index: ["one"] for index in range(len(words))}
        for made in (
            replace_words(words, options, 0.5, random.Random(seed)),
            mask_words(words, 0.5, "[MASK]", random.Random(seed)),
            replace_drawn(words, classes, 0.5, random.Random(seed)),
            replace_drawn(words, unseen, 0.5, random.Random(seed)),
        ):
            assert len(words_of(" ".join(made))) == len(words)


def test_a_probability_of_0_replaces_nothing_and_of_1_everything() -> None:
    words = ["A", "(quiet)", "Movie", "...", "ends"]
    options = {1: ["loud"], 2: ["film"], 3: ["film"], 4: []}
    assert replace_words(words, options, 0.0, random.Random(0)) == words
    assert replace_words(words, options, 1.0, random.Random(0)) == ["A", "(loud)", "Film", "...", "ends"]
    assert mask_words(words, 0.0, "<mask>", random.Random(0)) == words
    assert mask_words(words, 1.0, "<mask>", random.Random(0)) == ["<mask>"] * 5


def test_words_are_replaced_as_often_as_asked() -> None:
    words = ["film"] * 4000
    made = replace_words(words, {index: ["plot"] for index in range(4000)}, 0.4, random.Random(0))
    assert 1450 < made.count("plot") < 1750


@given(SPLIT, st.integers(0, 99))
def test_a_span_is_a_run_of_its_text(texts, seed: int) -> None:
    for words in texts:
        made = span_of(words, (0.25, 0.9), random.Random(seed))
        assert 1 <= len(made) <= max(1, round(0.9 * len(words)))
        assert any(words[start : start + len(made)] == made for start in range(len(words)))


@given(SPLIT, SPLIT, st.integers(0, 99))
def test_a_crossover_begins_as_one_text_and_ends_as_the_other(first, second, seed: int) -> None:
    made = crossover(first[0], second[0], random.Random(seed))
    assert made[0] == first[0][0] and made[-1] == second[0][-1]
    assert any(
        made[:cut] == first[0][:cut] and made[cut:] == second[0][len(second[0]) - (len(made) - cut) :]
        for cut in range(1, len(made))
    )


def test_words_of_a_class_end_alike_and_are_as_frequent() -> None:
    classes = WordClasses({"reading": 2, "writing": 3, "singing": 90, "dog": 2, "bag": 2, "cat": 2})
    assert {classes.draw("Reading", random.Random(seed)) for seed in range(30)} == {"writing", None}
    assert {classes.draw("dog", random.Random(seed)) for seed in range(30)} == {"bag", None}
    assert classes.draw("singing", random.Random(0)) is None
    assert classes.draw("unheard", random.Random(0)) is None


def test_unseen_words_are_those_that_no_text_has_the_frequent_ones_first() -> None:
    vocabulary = ["the", "film", "Tea", "tea", "##s", "river", "x2"]
    unseen = UnseenWords(vocabulary, {"film": 3, "plot": 1})
    drawn = Counter(unseen.draw("film", random.Random(seed)) for seed in range(3000))
    assert set(drawn) == {"tea", "river"}
    assert drawn["tea"] / drawn["river"] == pytest.approx(3 / 2, rel=0.15)  # the second and the third
    words = ["The", "(quiet)", "Film", "ends"]
    made = replace_drawn(words, unseen, 1.0, random.Random(0))
    assert made[0] == "The" and made[1] in {"(tea)", "(river)"} and made[2] in {"Tea", "River"}
    assert replace_drawn(words, UnseenWords(["film"], {"film": 1}), 1.0, random.Random(0)) == words


@pytest.mark.parametrize("texts", [SINGLE, PAIRS])
def test_the_same_seed_makes_the_same_texts(texts) -> None:
    first = list(augmented(augmenter(texts), ALL, 4, [], seed=3))
    assert first == list(augmented(augmenter(texts), ALL, 4, [], seed=3))
    assert first != list(augmented(augmenter(texts), ALL, 4, [], seed=4))
    assert len(first) == 4 * len(texts)


@pytest.mark.parametrize("texts", [SINGLE, PAIRS])
def test_what_comes_out_is_new_whole_and_never_held_out(texts) -> None:
    wild = Rates(replace=0.9, mask=0.5, word_class=0.9)
    unseen = [made for _, made in augmented(augmenter(texts, rates=wild), ALL, 6, [], 0) if made]
    # What would come out is held out, in another case and (pairs) in the other order.
    held = [tuple(f" {text.upper()}  " for text in made[::-1]) for made in unseen[::2]]
    made = [made for _, made in augmented(augmenter(texts, rates=wild), ALL, 6, held, 0) if made]
    plain = [normalised(example) for example in made]
    assert plain and len(set(plain)) == len(plain)
    assert not set(plain) & {normalised(example) for example in [*held, *texts]}
    assert not set(plain) & {normalised(example[::-1]) for example in held}
    assert all(len(example) == len(texts[0]) and all(example) for example in made)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("texts", [SINGLE, PAIRS])
def test_every_operation_makes_something(operation, texts) -> None:
    made = list(augmented(augmenter(texts), {operation: 2.0}, 3, [], 0))
    assert {name for name, _ in made} == {operation}
    assert sum(example is not None for _, example in made) > len(texts) / 4


def test_operations_are_drawn_by_their_weights() -> None:
    made = augmented(augmenter(SINGLE), {"spans": 3.0, "mask": 1.0, "class": 0.0}, 50, [], 0)
    drawn = Counter(name for name, _ in made)
    assert 2.6 < drawn["spans"] / drawn["mask"] < 3.4 and drawn["class"] == 0


def test_any_beginning_covers_all_texts() -> None:
    texts = [(f"{number} film plot scene story actor",) for number in range(40)]
    made = augmented(Augmenter(texts, mask="[MASK]"), {"mask": 1.0}, 2, [], 0)
    first = [next(made)[1] for _ in range(40)]
    assert len({example[0].split()[0] for example in first if example}) > 20


def test_texts_without_words_do_no_harm() -> None:
    texts = [("",), (" ",), ("!",), ("日本映画",)]
    for operation in OPERATIONS:
        made = list(augmented(augmenter(texts), {operation: 1.0}, 3, [], 0))
        assert all(example is None or example[0].strip() for _, example in made)


@pytest.mark.parametrize(("twin", "share"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_one_text_of_a_pair_stands_on_both_sides_as_often_as_asked(twin: float, share: float) -> None:
    pair = (" ".join(f"a{n}" for n in range(9)), " ".join(f"b{n}" for n in range(9)))
    maker, chance = augmenter([pair], rates=Rates(twin=twin)), random.Random(0)
    made = [maker.make("spans", 0, chance) for _ in range(600)]
    assert all(first in pair[0] or first in pair[1] for first, _ in made)
    twins = [texts for texts in made if texts[0][0] == texts[1][0]]
    assert len(twins) / len(made) == pytest.approx(share, abs=0.06)
    # Of twins, one stays whole.
    assert all({*texts} & {*pair} for texts in twins)

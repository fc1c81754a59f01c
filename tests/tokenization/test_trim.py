from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import Sequence as ProcessorSequence
from tokenizers.processors import TemplateProcessing

from pocketlm.errors import TeacherError
from pocketlm.tokenization.trim import Trimmed, count_pieces, script_of, trim
from tests.tiny import KINDS, NO_DEADLINE, WORDS, sentences, texts, tokenizer, wordpiece

UNKNOWN = ("[UNK]", "<unk>")
EVERYTHING = 10**6
SIZES = (0, 60, 150, 250, 300)
TRAINING = [(sentence,) for sentence in sentences(40, seed=3)]


def unknown_characters(tokenizer: Tokenizer, text: str) -> set[int]:
    """Characters of a text that lie in an unknown piece."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return {
        place
        for piece, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True)
        if piece in UNKNOWN
        for place in range(start, end)
    }


def covered_characters(tokenizer: Tokenizer, text: str) -> set[int]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return {place for start, end in encoding.offsets for place in range(start, end)}


def pieces_of(trimmed: Trimmed) -> list[str | None]:
    return [trimmed.tokenizer.id_to_token(new) for new in range(len(trimmed.teacher_ids))]


def in_teachers_ids(trimmed: Trimmed, ids: Sequence[int]) -> list[int]:
    return [trimmed.teacher_ids[new] for new in ids]


@pytest.fixture(scope="module")
def trimmings() -> dict[tuple[str, int], Trimmed]:
    return {(kind, size): trim(tokenizer(kind), TRAINING, size) for kind in KINDS for size in SIZES}


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
@example(text="")
@example(text="unlovely 😀ed naïveté 日本映画 👩‍👩‍👧 x")
@example(text="the [UNK] of <unk> [MASK] <mask>")
@NO_DEADLINE
def test_what_the_teacher_can_spell_is_never_unknown(
    trimmings: dict[tuple[str, int], Trimmed], kind: str, text: str
) -> None:
    teacher = tokenizer(kind)
    unknown, covered = unknown_characters(teacher, text), covered_characters(teacher, text)
    for size in SIZES:
        trimmed = trimmings[kind, size].tokenizer
        assert unknown_characters(trimmed, text) <= unknown
        assert covered_characters(trimmed, text) == covered


@given(text=texts)
@NO_DEADLINE
def test_a_byte_level_pocket_gives_every_text_back(
    trimmings: dict[tuple[str, int], Trimmed], text: str
) -> None:
    for size in SIZES:
        trimmed = trimmings["byte-bpe", size].tokenizer
        ids = trimmed.encode(text, add_special_tokens=False).ids
        assert trimmed.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_new_id_is_the_teachers_same_piece(
    trimmings: dict[tuple[str, int], Trimmed], kind: str, size: int
) -> None:
    teacher, trimmed = tokenizer(kind), trimmings[kind, size]
    assert trimmed.teacher_ids == sorted(set(trimmed.teacher_ids))
    assert pieces_of(trimmed) == [teacher.id_to_token(old) for old in trimmed.teacher_ids]
    assert trimmed.tokenizer.get_vocab_size() == len(trimmed.teacher_ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "text", [("a quiet film", None), ("a quiet film", "good, 日本"), ("", ""), ("", None)]
)
def test_special_tokens_stand_where_they_stood(
    trimmings: dict[tuple[str, int], Trimmed], kind: str, size: int, text: tuple[str, str | None]
) -> None:
    teacher, trimmed = tokenizer(kind), trimmings[kind, size]

    def frame(encoding):
        kept = zip(encoding.tokens, encoding.type_ids, encoding.sequence_ids, strict=True)
        return [(piece, segment) for piece, segment, sequence in kept if sequence is None]

    wanted, got = teacher.encode(*text), trimmed.tokenizer.encode(*text)
    assert frame(got) == frame(wanted)
    special = [new for new, sequence in zip(got.ids, got.sequence_ids, strict=True) if sequence is None]
    asked = [old for old, sequence in zip(wanted.ids, wanted.sequence_ids, strict=True) if sequence is None]
    assert in_teachers_ids(trimmed, special) == asked
    names = {token.content for token in teacher.get_added_tokens_decoder().values()}
    assert names == {token.content for token in trimmed.tokenizer.get_added_tokens_decoder().values()}


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, other=texts)
@NO_DEADLINE
def test_where_every_piece_is_kept_nothing_changes(kind: str, text: str, other: str) -> None:
    teacher = tokenizer(kind)
    trimmed = trim(teacher, [], EVERYTHING, unseen=True)
    assert len(trimmed.teacher_ids) == teacher.get_vocab_size()
    for wanted, got in (
        (teacher.encode(text), trimmed.tokenizer.encode(text)),
        (teacher.encode(text, other), trimmed.tokenizer.encode(text, other)),
    ):
        assert in_teachers_ids(trimmed, got.ids) == wanted.ids
        assert (got.tokens, got.offsets, got.type_ids) == (wanted.tokens, wanted.offsets, wanted.type_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_it_was_trimmed_for_are_encoded_as_before(kind: str) -> None:
    teacher = tokenizer(kind)
    trimmed = trim(teacher, TRAINING, EVERYTHING)
    for (text,) in TRAINING:
        assert in_teachers_ids(trimmed, trimmed.tokenizer.encode(text).ids) == teacher.encode(text).ids


@pytest.mark.parametrize("kind", KINDS)
@given(size=st.integers(0, 420))
@NO_DEADLINE
def test_the_size_is_never_exceeded_but_for_spelling(kind: str, size: int) -> None:
    needed = len(trim(tokenizer(kind), TRAINING, 0).teacher_ids)
    all_used = len(trim(tokenizer(kind), TRAINING, EVERYTHING).teacher_ids)
    count = len(trim(tokenizer(kind), TRAINING, size).teacher_ids)
    assert needed <= count <= max(size, needed)
    assert count <= all_used
    if all_used <= size:
        assert count == all_used


def test_the_room_goes_to_the_most_frequent_pieces() -> None:
    often = [("triumph triumph triumph",), ("plot plot",), ("scene",)]
    needed = len(trim(tokenizer(), often, 0).teacher_ids)
    for extra, kept in ((1, {"triumph"}), (2, {"triumph", "plot"}), (3, {"triumph", "plot", "scene"})):
        pieces = set(pieces_of(trim(tokenizer(), often, needed + extra)))
        assert {word for word in WORDS if len(word) > 2 and word in pieces} == kept


def test_equally_frequent_pieces_are_taken_in_their_old_order() -> None:
    texts = [("plot scene",), ("scene plot",)]
    needed = len(trim(tokenizer(), texts, 0).teacher_ids)
    pieces = pieces_of(trim(tokenizer(), texts, needed + 1))
    assert "plot" in pieces and "scene" not in pieces


@pytest.mark.parametrize("kind", KINDS)
@given(size=st.integers(0, 420))
@NO_DEADLINE
def test_pieces_that_texts_lack_fill_the_room_behind_theirs(kind: str, size: int) -> None:
    teacher = tokenizer(kind)
    alone, filled = (trim(teacher, TRAINING, size, unseen=unseen) for unseen in (False, True))
    kept, more = {*alone.teacher_ids}, {*filled.teacher_ids}
    assert kept <= more
    if len(kept) < size < teacher.get_vocab_size() and kind == "wordpiece":
        lacking = [index for index in range(teacher.get_vocab_size()) if index not in kept]
        assert more == kept | {*lacking[: size - len(kept)]}  # the lowest first


def test_letters_that_are_left_out_do_not_come_back_to_fill_the_room() -> None:
    filled, whole = (
        trim(tokenizer(), [("a plot",)], EVERYTHING, scripts, unseen=True) for scripts in ("used", "all")
    )
    scripts = [
        {script_of(letter) for piece in pieces_of(one) for letter in str(piece)} for one in (filled, whole)
    ]
    assert scripts[0] == {None} and "CJK" in scripts[1]


def test_a_teachers_truncation_and_padding_hide_nothing() -> None:
    teacher = tokenizer()
    teacher.enable_truncation(3)
    teacher.enable_padding(length=64)
    assert count_pieces(teacher, [("plot plot scene", "scene")]) == {
        teacher.token_to_id("plot"): 2,
        teacher.token_to_id("scene"): 2,
    }
    trimmed = trim(teacher, TRAINING, EVERYTHING).tokenizer
    assert trimmed.truncation is None and trimmed.padding is None


def test_special_tokens_are_not_counted() -> None:
    teacher = tokenizer()
    assert count_pieces(teacher, [("[MASK] [SEP] plot",)]) == {teacher.token_to_id("plot"): 1}


@pytest.mark.parametrize("kind", KINDS)
def test_words_added_behind_the_vocabulary_are_kept(kind: str) -> None:
    teacher = tokenizer(kind)
    teacher.add_tokens(["pocketlm", AddedToken("zq", single_word=True)])
    texts = [("a pocketlm film zq", "pocketlm")]
    for size in (0, 150, EVERYTHING):
        trimmed = trim(teacher, texts, size)
        assert [teacher.id_to_token(old) for old in trimmed.teacher_ids] == pieces_of(trimmed)
        for word in ("pocketlm", "zq"):
            old, new = teacher.token_to_id(word), trimmed.tokenizer.token_to_id(word)
            assert trimmed.teacher_ids[new] == old
        text = "a pocketlm film, zq xzqx"
        assert unknown_characters(trimmed.tokenizer, text) <= unknown_characters(teacher, text)
    whole = trim(teacher, [("a pocketlm film , zq xzqx",)], EVERYTHING)
    for text in ("a pocketlm film, zq", "xzqx"):
        assert in_teachers_ids(whole, whole.tokenizer.encode(text).ids) == teacher.encode(text).ids


def test_a_piece_whose_characters_the_teacher_lacks_stays_whole() -> None:
    vocabulary = {
        piece: index
        for index, piece in enumerate(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "ab", "xyz", "##cd"]
        )
    }
    trimmed = trim(wordpiece(vocabulary=vocabulary), [], 0)
    # "ab" can be spelled a ##b; there is no x, no ##y and no ##c.
    assert pieces_of(trimmed) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "xyz", "##cd"]
    assert trimmed.tokenizer.encode("xyzcd ab", add_special_tokens=False).tokens == [
        "xyz",
        "##cd",
        "a",
        "##b",
    ]


def test_a_unigram_piece_whose_characters_the_teacher_lacks_stays_whole() -> None:
    vocabulary = [("<unk>", 0.0), ("▁", -3.0), ("a", -4.0), ("b", -4.0), ("ab", -2.0), ("xyz", -5.0)]
    teacher = Tokenizer(models.Unigram(vocabulary, 0))
    teacher.pre_tokenizer = pre_tokenizers.Metaspace()
    trimmed = trim(teacher, [], 0)
    assert pieces_of(trimmed) == ["<unk>", "▁", "a", "b", "xyz"]
    assert trimmed.tokenizer.encode("xyz ab").tokens == ["▁", "xyz", "▁", "a", "b"]


def test_unused_pieces_go() -> None:
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "[unused12]", "a"])
    teacher = wordpiece(vocabulary={piece: index for index, piece in enumerate(vocabulary)})
    assert pieces_of(trim(teacher, [("a",)], EVERYTHING)) == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
    ]


def test_nested_post_processors_are_renumbered() -> None:
    teacher = tokenizer()
    template = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, teacher.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    from tokenizers.processors import ByteLevel

    teacher.post_processor = ProcessorSequence([ByteLevel(trim_offsets=True), template])
    shifted = json.loads(teacher.to_str())
    trimmed = trim(Tokenizer.from_str(json.dumps(shifted)), [("plot",)], 0)
    ids = trimmed.tokenizer.encode("plot", "scene").ids
    assert in_teachers_ids(trimmed, ids)[0] == teacher.token_to_id("[CLS]")
    assert in_teachers_ids(trimmed, ids)[-1] == teacher.token_to_id("[SEP]")


def test_another_type_of_tokenizer_is_refused() -> None:
    teacher = Tokenizer(models.WordLevel({"[UNK]": 0, "plot": 1}, unk_token="[UNK]"))
    with pytest.raises(
        TeacherError, match=r"type WordLevel; .*WordPiece, BPE and Unigram; set `vocabulary: null`"
    ):
        trim(teacher, [("plot",)], 10)


def real_tokenizers() -> list[Path]:
    """Tokenizers of real teachers that earlier runs of the tool left in its cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(os.environ.get("POCKETLM_CACHE") or base / "pocketlm")
    return sorted(cache.glob("sources/*/content/*/tokenizer.json"))


def test_a_real_teacher() -> None:
    found = real_tokenizers()
    if not found:
        pytest.skip("no teacher in the cache; run `pocketlm shrink` once, or set POCKETLM_CACHE")
    teacher = Tokenizer.from_file(str(found[0]))
    teacher.no_padding()
    teacher.no_truncation()
    texts = [
        "naïveté, 日本映画 unbelievably!",
        "antidisestablishmentarianism's 12,345.67 café",
        *sentences(50),
    ]
    trimmed = trim(teacher, [(text,) for text in texts[2:]], 3000)
    assert pieces_of(trimmed) == [teacher.id_to_token(old) for old in trimmed.teacher_ids]
    for text in texts:
        assert unknown_characters(trimmed.tokenizer, text) <= unknown_characters(teacher, text)
    for text in texts[2:]:
        assert in_teachers_ids(trimmed, trimmed.tokenizer.encode(text).ids) == teacher.encode(text).ids


@pytest.mark.parametrize("kind", KINDS)
def test_letters_of_unused_scripts_make_room_for_pieces(kind: str) -> None:
    plain = [(text,) for (text,) in TRAINING if text.isascii()]
    whole, used = (trim(tokenizer(kind), plain, 150, scripts) for scripts in ("all", "used"))
    scripts = {script_of(c) for piece in pieces_of(used) for c in (piece or "").strip("#")}
    assert scripts <= {None}
    assert len(used.teacher_ids) <= max(150, len(whole.teacher_ids))
    for (text,) in plain:
        assert unknown_characters(used.tokenizer, text) == unknown_characters(whole.tokenizer, text)


def test_a_script_that_the_texts_use_keeps_its_letters() -> None:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*specials, "日", "##日", "本", "##本", "д", "##д", "a", "##a"]
    teacher = wordpiece(vocabulary={piece: index for index, piece in enumerate(pieces)})
    kept = trim(teacher, [("日 a",)], 0, "used").tokenizer.get_vocab()
    assert {"日", "##日", "本", "##本", "a", "##a"} <= kept.keys()
    assert not {"д", "##д"} & kept.keys()


@pytest.mark.parametrize(
    ("characters", "script"),
    [
        ("aéǆµĠ7😀▁\u0301", None),
        ("日", "CJK"),
        ("д", "CYRILLIC"),
        ("カ", "KATAKANA"),
        ("한", "HANGUL"),
        ("ά", "GREEK"),
    ],
)
def test_the_script_of_a_character(characters: str, script: str | None) -> None:
    assert {script_of(character) for character in characters} == {script}

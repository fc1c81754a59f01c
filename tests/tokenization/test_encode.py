from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from pocketlm.errors import TeacherError
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import MISSING
from pocketlm.tokenization.encode import encode, encode_windows, load_tokenizer, pad_id
from tests.tiny import KINDS, NO_DEADLINE, texts, tokenizer

examples = st.one_of(texts.map(lambda text: (text,)), st.tuples(texts, texts))


@pytest.mark.parametrize("kind", KINDS)
@given(batch=st.lists(texts.map(lambda text: (text,)), min_size=1, max_size=4), length=st.integers(6, 24))
@NO_DEADLINE
def test_an_example_is_encoded_alike_alone_and_among_others(
    kind: str, batch: list[tuple[str, ...]], length: int
) -> None:
    together = encode(tokenizer(kind), batch, length)
    assert len(together) == len(batch)
    for index, text in enumerate(batch):
        alone = encode(tokenizer(kind), [text], length)
        for name in ("ids", "type_ids", "origins", "spans"):
            assert getattr(together, name)[index] == getattr(alone, name)[0]


@pytest.mark.parametrize("kind", KINDS)
@given(text=examples, length=st.integers(6, 24))
@NO_DEADLINE
def test_an_encoding_is_the_tokenizers_own_cut_to_length(
    kind: str, text: tuple[str, ...], length: int
) -> None:
    reference = tokenizer(kind)
    reference.enable_truncation(length, strategy="longest_first")
    wanted = reference.encode(*text)
    encoded = encode(tokenizer(kind), [text], length)
    assert encoded.ids == [wanted.ids]
    assert encoded.lengths == [len(wanted.ids)]
    assert encoded.lengths[0] <= length
    assert encoded.type_ids == [wanted.type_ids]
    assert [None if origin == -1 else origin for origin in encoded.origins[0]] == wanted.sequence_ids
    assert encoded.spans == [wanted.offsets]


@pytest.mark.parametrize("kind", KINDS)
@given(text=examples)
@NO_DEADLINE
def test_spans_lie_in_their_own_text(kind: str, text: tuple[str, ...]) -> None:
    encoded = encode(tokenizer(kind), [text], 512)
    for origin, (start, end) in zip(encoded.origins[0], encoded.spans[0], strict=True):
        if origin == -1:
            assert (start, end) == (0, 0)
        else:
            assert 0 <= start <= end <= len(text[origin])


def test_special_tokens_belong_to_no_text() -> None:
    encoded = encode(tokenizer(), [("quiet plot", "it"), ("quiet", "plot")], 16)
    assert encoded.origins == [[-1, 0, 0, -1, 1, -1], [-1, 0, -1, 1, -1]]
    assert encoded.type_ids == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]


def test_of_a_pair_the_longer_text_is_cut_first() -> None:
    encoded = encode(tokenizer(), [("film " * 10, "plot"), ("film", "plot " * 10)], 7)
    assert encoded.origins == [[-1, 0, 0, 0, -1, 1, -1], [-1, 0, -1, 1, 1, 1, -1]]


def test_padding_and_truncation_of_the_tokenizer_do_not_count() -> None:
    mine = tokenizer()
    mine.enable_truncation(3)
    mine.enable_padding(length=9)
    assert encode(mine, [("a quiet film",)], 12).lengths == [5]


def test_the_first_pieces_of_words_are_found() -> None:
    tags = Task("tokens", pair=False, tags=("B-x", "O"))
    encoded = encode(tokenizer(), [("unlovely  zebra film",), ("",), ("😀 日本",)], 12, tags)
    for text, words, spans in zip(encoded.texts, encoded.words, encoded.spans, strict=True):
        starts = [text[0][spans[place][0] :].split()[0] for place in words if place != MISSING]
        assert starts == text[0].split()[: len(starts)]
    assert encoded.words[1] == [] and len(encoded.words[0]) == 3
    assert encode(tokenizer(), [("a film",)], 12).words == []


def test_a_long_context_has_windows_that_show_every_word() -> None:
    question = Task("qa", pair=True)
    texts = [("which mood", "film " * 30), ("it", "plot")]
    first = encode(tokenizer(), texts, 14, question)
    assert len(first) == 2 and max(first.lengths) == 14 and MISSING in first.words[0]
    windows, owners = encode_windows(tokenizer(), texts, 14, question)
    assert owners == sorted(owners) and owners.count(1) == 1 and max(windows.lengths) <= 14
    shown = {word for row in windows.words[:-1] for word, place in enumerate(row) if place != MISSING}
    assert shown == set(range(30))
    assert windows.ids[0] == first.ids[0]


def test_no_examples() -> None:
    assert len(encode(tokenizer(), [], 8)) == 0


@pytest.mark.parametrize(
    ("kind", "token"), [("wordpiece", "[PAD]"), ("byte-bpe", "<pad>"), ("unigram", "<pad>")]
)
def test_the_padding_piece_is_found(kind: str, token: str) -> None:
    assert pad_id(tokenizer(kind)) == tokenizer(kind).token_to_id(token)


def test_a_tokenizer_without_padding_is_refused() -> None:
    with pytest.raises(TeacherError, match=r"no padding piece; looked for \[PAD\], <pad>, .*; add one"):
        pad_id(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


def test_a_loaded_tokenizer_neither_pads_nor_cuts(tmp_path: Path) -> None:
    saved = tokenizer()
    saved.enable_truncation(3)
    saved.enable_padding(length=9)
    saved.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.truncation is None and loaded.padding is None
    assert loaded.encode("a quiet film of it").ids == tokenizer().encode("a quiet film of it").ids


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TeacherError, match=r"tokenizer\.json is not a tokenizer: .*; fetch the model again"):
        load_tokenizer(tmp_path)


def test_a_folder_without_any_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TeacherError, match=r"has no tokenizer\.json, and none can be made from its vocabulary"
    ):
        load_tokenizer(tmp_path)


def test_an_older_vocabulary_file_becomes_the_same_tokenizer(tmp_path: Path) -> None:
    vocabulary = tokenizer().get_vocab()
    (tmp_path / "vocab.txt").write_text(
        "\n".join(sorted(vocabulary, key=lambda piece: vocabulary[piece])), encoding="utf-8"
    )
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    loaded = load_tokenizer(tmp_path)
    for text in ("a quiet film", "unlovely triumphs", "loving 日本"):
        assert loaded.encode(text, "plot").ids == tokenizer().encode(text, "plot").ids

"""Tiny teachers for tests: random weights of every architecture, tokenizers of every type, no download."""

from __future__ import annotations

import random
from functools import cache
from typing import Any, Literal

from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# A busy machine is slow, not wrong.
NO_DEADLINE = settings(deadline=None, max_examples=16)

WORDS = [
    "a", "an", "the", "of", "and", "to", "in", "is", "it", "film", "films", "movie", "movies", "plot",
    "actor", "actors", "scene", "story", "quiet", "loud", "dull", "bright", "triumph", "triumphs",
    "failure", "good", "better", "best", "bad", "worse", "worst", "love", "loved", "loves", "loving",
    "hate", "hated", "unlovely", "never", "always", "nothing", "something", "naïve", "café", "señor",
    "日本", "映画", "😀", "🎬", "re", "reworked", "under", "understand",
]  # fmt: skip
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789éèñïü日本映画語😀🎬👩.,!?-#'"
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

Kind = Literal["wordpiece", "byte-bpe", "bpe", "bpe-suffix", "bpe-prefix", "unigram", "unigram-bytes"]
KINDS: tuple[Kind, ...] = (
    *("wordpiece", "byte-bpe", "bpe", "bpe-suffix", "bpe-prefix", "unigram", "unigram-bytes"),
)  # fmt: skip
Architecture = Literal["bert", "roberta", "distilbert", "electra", "mpnet"]
ARCHITECTURES: tuple[Architecture, ...] = ("bert", "roberta", "distilbert", "electra", "mpnet")


class KilledError(Exception):
    """Stands for the power going off."""


words = st.one_of(st.sampled_from(WORDS), st.text(ALPHABET, min_size=1, max_size=8))
texts = st.one_of(
    st.lists(words, max_size=8).map(" ".join),
    st.text(ALPHABET + " \t", max_size=20),
    st.text(max_size=12),
)


def sentences(count: int, seed: int = 0, longest: int = 9) -> list[str]:
    """Sentences of 1 to `longest` words."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, longest))) for _ in range(count)]


@cache
def _tokenizer_json(kind: Kind) -> str:
    return _MAKERS[kind]().to_str()


def tokenizer(kind: Kind = "wordpiece") -> Tokenizer:
    """A tokenizer over `ALPHABET`, some 150 to 400 pieces, with special tokens for single texts and pairs."""
    return Tokenizer.from_str(_tokenizer_json(kind))


def wordpiece(
    specials: tuple[str, ...] = BERT_SPECIALS, vocabulary: dict[str, int] | None = None
) -> Tokenizer:
    """WordPiece whose vocabulary holds every character of the alphabet in both its forms."""
    pad, unknown, start, end, mask = specials
    if vocabulary is None:
        plain = [*ALPHABET, "ï", *WORDS, "un", "tri", "fil", "lov", "scen"]
        inside = ["##" + piece for piece in (*ALPHABET, "ed", "ing", "s", "umph", "ly", "mm", "ork", "本")]
        pieces = dict.fromkeys([pad, unknown, start, end, mask, *plain, *inside])
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    made.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([token for token in specials if token in vocabulary])
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(token, vocabulary[token]) for token in (start, end)],
    )
    return made


def _byte_bpe() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=list(ROBERTA_SPECIALS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(sentences(200), trainer)
    made.post_processor = processors.RobertaProcessing(
        ("</s>", made.token_to_id("</s>")), ("<s>", made.token_to_id("<s>")), add_prefix_space=False
    )
    return made


def _bpe(prefix: str | None = None, suffix: str | None = None) -> Tokenizer:
    options: dict[str, Any] = {"continuing_subword_prefix": prefix, "end_of_word_suffix": suffix}
    options = {name: value for name, value in options.items() if value is not None}
    made = Tokenizer(models.BPE(unk_token="[UNK]", **options))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=list(BERT_SPECIALS), show_progress=False,
        initial_alphabet=list(ALPHABET), **options,
    )  # fmt: skip
    made.train_from_iterator([*sentences(200), *_in_every_place()], trainer)
    made.post_processor = processors.BertProcessing(
        ("[SEP]", made.token_to_id("[SEP]")), ("[CLS]", made.token_to_id("[CLS]"))
    )
    return made


def _in_every_place() -> list[str]:
    """Every character of the alphabet at the start, inside and at the end of a word, and alone."""
    return [f"{c} {c}a a{c} a{c}a" for c in ALPHABET]


def _unigram(byte_fallback: bool = False) -> Tokenizer:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=list(ROBERTA_SPECIALS), unk_token="<unk>", show_progress=False,
        initial_alphabet=list(ALPHABET),
    )  # fmt: skip
    trained.train_from_iterator([*sentences(200), *_in_every_place()], trainer)
    if byte_fallback:
        import json

        spec = json.loads(trained.to_str())
        vocabulary = [tuple(entry) for entry in spec["model"]["vocab"]]
        vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
        made = Tokenizer(models.Unigram(vocabulary, spec["model"]["unk_id"], byte_fallback=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.add_special_tokens(list(ROBERTA_SPECIALS))
        trained = made
    trained.decoder = decoders.Metaspace()
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, trained.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return trained


_MAKERS = {
    "wordpiece": wordpiece,
    "byte-bpe": _byte_bpe,
    "bpe": _bpe,
    "bpe-suffix": lambda: _bpe(suffix="</w>"),
    "bpe-prefix": lambda: _bpe(prefix="##"),
    "unigram": _unigram,
    "unigram-bytes": lambda: _unigram(byte_fallback=True),
}

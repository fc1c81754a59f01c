"""Learn a small WordPiece vocabulary on the user's text.

Zhao et al. 2019 (https://arxiv.org/abs/1909.11687), section 3.1: the student's vocabulary of 4,928 pieces is
learned by the same WordPiece algorithm as the teacher's, and shares most but not all of its pieces.

Deviations: it is learned on the user's own text, by the trainer of the `tokenizers` library, which merges
by frequency; the text is normalised and split into words as the teacher's WordPiece does it, and the
special tokens and what is put around a text are the teacher's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, models, trainers

from pocketlm.errors import TeacherError

LONGEST_WORD = 100


def learn(tokenizer: Tokenizer, texts: Iterable[Sequence[str]], size: int) -> Tokenizer:
    """A WordPiece tokenizer for `texts`, with the teacher's way of reading text.

    Every character of the texts, and the teacher's of ASCII, is kept, at the start of a word and inside
    one, even where that takes more than `size` pieces; where the texts have fewer different pieces, it is
    smaller.

    Args:
        tokenizer: The teacher's, of type WordPiece.
        texts: Training texts, one or two strings an example.
        size: Wanted number of pieces, special tokens included.

    Raises:
        TeacherError: the teacher's tokenizer is not WordPiece.
    """
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    if spec["model"]["type"] != "WordPiece":
        raise TeacherError(
            f"the teacher's tokenizer is of type {spec['model']['type']}; a vocabulary can be learned in the "
            "manner of WordPiece only; trim the teacher's own instead (vocabulary in the student stage)"
        )
    prefix = spec["model"]["continuing_subword_prefix"]
    special = [token["content"] for token in sorted(spec["added_tokens"], key=lambda token: token["id"])]
    unknown = spec["model"]["unk_token"]
    special += [unknown] if unknown not in special else []
    flat = [text for example in texts for text in example]
    trained = Tokenizer(models.WordPiece({}, unk_token=unknown))
    trained.normalizer, trained.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    forms = [form for character in _characters(tokenizer, flat) for form in (character, prefix + character)]
    needed = list(dict.fromkeys([*special, *forms]))
    # Characters are handed over as special tokens: left to itself the trainer numbers their forms in the
    # order of a hash table, another one in every run, and breaks ties by those numbers. And it leaves out
    # the forms that it never met, which another word may still need.
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(size, len(needed)),
        special_tokens=needed,
        show_progress=False,
        continuing_subword_prefix=prefix,
    )
    trained.train_from_iterator(flat, trainer)
    learned = trained.get_vocab()
    pieces = list(dict.fromkeys([*needed, *sorted(learned, key=lambda piece: learned[piece])]))
    ids = {piece: index for index, piece in enumerate(pieces)}
    spec["model"]["vocab"] = ids
    spec["model"]["max_input_chars_per_word"] = LONGEST_WORD
    spec["truncation"] = spec["padding"] = None
    for token in spec["added_tokens"]:
        token["id"] = ids[token["content"]]
    _renumber(spec.get("post_processor"), ids)
    return Tokenizer.from_str(json.dumps(spec))


def _characters(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """The characters of the texts after the teacher's normalizer, and the teacher's of ASCII; sorted."""
    # A digit or letter that these texts happen to lack will come with the next ones.
    found = {piece for piece in tokenizer.get_vocab() if len(piece) == 1 and piece.isascii()}
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        found.update(normal)
    return sorted(character for character in found if not character.isspace())


def _renumber(processor: dict[str, Any] | None, ids: dict[str, int]) -> None:
    """Rewrite the special tokens of a post-processor in place."""
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        _renumber(inner, ids)
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [ids[piece] for piece in token["tokens"]]
    for name in ("sep", "cls"):
        if name in processor:
            processor[name] = [processor[name][0], ids[processor[name][0]]]

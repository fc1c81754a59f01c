"""Learn a small vocabulary from a text, in the form of a teacher's tokenizer.

As a teacher's own vocabulary was learned: WordPiece and BPE by merging the most frequent pairs (Sennrich et
al. 2016, https://arxiv.org/abs/1508.07909), Unigram by likelihood (Kudo 2018,
https://arxiv.org/abs/1804.10959).

Deviations: every single character that is a piece of the teacher's stays one, in all its forms, so the new
tokenizer spells every word that the teacher's spells.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, trainers

from pocketlm.errors import TeacherError
from pocketlm.tokenization.trim import trim


def learn(tokenizer: Tokenizer, texts: Iterable[Sequence[str]], size: int) -> Tokenizer:
    """A tokenizer that cuts texts into other pieces, all else as the teacher's.

    Args:
        tokenizer: The teacher's: its normalization, its cutting into words and its special tokens are kept.
        texts: Training texts, one or two strings an example.
        size: Wanted number of pieces; where spelling alone needs more, it is larger.

    Raises:
        TeacherError: the tokenizer is not WordPiece, BPE or Unigram.
    """
    # With no text to count, what is left are the special tokens and the pieces that spelling needs.
    spec = json.loads(trim(tokenizer, [], 0).tokenizer.to_str())
    model, special = spec["model"], [token["content"] for token in spec["added_tokens"]]
    known = {**_vocabulary(model), **{token["content"]: token["id"] for token in spec["added_tokens"]}}
    room = max(0, size - len(known))
    trained = Tokenizer.from_str(json.dumps(spec))
    flat = (text for example in texts for text in example)
    trained.train_from_iterator(flat, _trainer(model, sorted(known), special, size))
    found = json.loads(trained.to_str())["model"]
    # Most useful first: merges in their order, pieces of Unigram by likelihood.
    learned = [piece for piece in _vocabulary(found) if piece not in known][:room]
    if model["type"] == "Unigram":
        if len(known) != len(model["vocab"]):
            raise TeacherError(
                "the teacher's tokenizer has special tokens behind its Unigram vocabulary, so no pieces can "
                "be added; set vocabulary_from: teacher"
            )
        scores = dict(found["vocab"])
        model["vocab"] += [[piece, scores[piece]] for piece in learned]
    else:
        model["vocab"] |= {piece: len(known) + index for index, piece in enumerate(learned)}
    if model["type"] == "BPE":
        prefix, pieces = model.get("continuing_subword_prefix") or "", set(model["vocab"])
        merges = [
            pair for pair in found["merges"] if {*pair, pair[0] + pair[1].removeprefix(prefix)} <= pieces
        ]
        model["merges"] += [pair for pair in merges if pair not in model["merges"]]
    return Tokenizer.from_str(json.dumps(spec))


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Piece to id, by id."""
    if model["type"] == "Unigram":
        return {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    return dict(sorted(model["vocab"].items(), key=lambda entry: entry[1]))


def _trainer(model: dict[str, Any], known: Sequence[str], special: list[str], size: int) -> Any:
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    bare = {piece.removeprefix(prefix or "").removesuffix(suffix or "") for piece in known}
    options: dict[str, Any] = {
        "vocab_size": size,
        "special_tokens": special,
        "initial_alphabet": sorted(piece for piece in bare if len(piece) == 1),
        "show_progress": False,
    }
    if model["type"] == "Unigram":
        unknown = None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
        return trainers.UnigramTrainer(**options, unk_token=unknown)
    if prefix:
        options["continuing_subword_prefix"] = prefix
        # Left to itself the trainer numbers the forms inside of a word in the order of a hash table, another
        # one in every run, and breaks ties by those numbers.
        options["special_tokens"] = [*special, *(piece for piece in known if piece not in special)]
    if suffix:
        options["end_of_word_suffix"] = suffix
    return (trainers.WordPieceTrainer if model["type"] == "WordPiece" else trainers.BpeTrainer)(**options)

"""Trim a tokenizer to the pieces a text needs, without turning any word into [UNK].

In a small model the embedding table is most of the bytes, and most of its rows are never used on
one user's text. Trimming keeps the pieces that the user's training text needs most, and remakes the
tokenizer so that every other word of the teacher's language is still spelled, in smaller pieces.

After Abdaoui et al. 2020, "Load What You Need" (https://aclanthology.org/2020.sustainlp-1.16/).

Deviations: a kept vocabulary is closed under spelling. Every single character of the teacher's
vocabulary is kept, in all its forms (at the start of a word, inside one, at its end), and BPE keeps
the pieces that the merges of a kept piece pass through. So no word that the teacher could spell
becomes unknown, as long as its characters are pieces themselves, as in a vocabulary made by training.
Letters of scripts that the texts never use may be left out: two thirds of the single characters of an
English vocabulary are letters that no English text has.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from pocketlm.errors import TeacherError

Scripts = Literal["all", "used"]


@dataclass(frozen=True)
class Trimmed:
    """A trimmed tokenizer and where its pieces stood in the teacher's.

    Args:
        tokenizer: The new tokenizer, ids 0 … kept - 1.
        teacher_ids: Teacher's id of every new id, ascending: rows of the teacher's embedding table.
    """

    tokenizer: Tokenizer
    teacher_ids: list[int]


def trim(
    tokenizer: Tokenizer,
    texts: Iterable[Sequence[str]],
    size: int,
    scripts: Scripts = "all",
    unseen: bool = False,
) -> Trimmed:
    """Keep the `size` pieces that matter most for `texts`.

    Special tokens and the pieces that spelling needs are kept first; the rest of the room goes to
    the pieces most frequent in `texts` (ties: the lower id). Where spelling alone needs more, the result
    is larger than `size`; it is smaller where the texts use fewer, unless `unseen` pieces take that room.

    Args:
        tokenizer: The teacher's tokenizer.
        texts: Training texts, one or two strings an example.
        size: Wanted number of pieces.
        scripts: `used` leaves out the letters of scripts that `texts` never use; a word in another script
            becomes unknown. Latin letters, digits and signs are always kept.
        unseen: Fill what room is left with pieces that `texts` never use, the lowest id first: a vocabulary
            made by training is in about the order of frequency.

    Raises:
        TeacherError: the tokenizer is not WordPiece, BPE or Unigram.
    """
    texts = list(texts)
    spec = json.loads(tokenizer.to_str())
    pieces = _pieces(spec["model"])
    ids = {**pieces, **{token["content"]: token["id"] for token in spec["added_tokens"]}}
    by_id = {index: piece for piece, index in ids.items()}
    merged_from = _merged_from(spec["model"])
    allowed = {piece for piece in pieces if not _UNUSED.fullmatch(piece)}
    if scripts == "used":
        used = {script_of(character) for example in texts for text in example for character in text}
        allowed = {piece for piece in allowed if _scripts_of(piece, spec["model"]) <= used | {None}}
    kept = {token["content"] for token in spec["added_tokens"]}
    kept |= _spelling(spec["model"], pieces) & allowed
    counts = count_pieces(tokenizer, texts)
    order = sorted(counts, key=lambda index: (-counts[index], index))
    if unseen:
        order += sorted(ids[piece] for piece in allowed if ids[piece] not in counts)
    for index in order:
        if len(kept) >= size:
            break
        more = kept | _closure(by_id[index], merged_from)
        if len(more) <= size:
            kept = more
    ordered = sorted(kept, key=lambda piece: ids[piece])
    _renumber(spec, {piece: new for new, piece in enumerate(ordered)})
    return Trimmed(Tokenizer.from_str(json.dumps(spec)), [ids[piece] for piece in ordered])


def script_of(character: str) -> str | None:
    """The script of a letter, as its Unicode name begins (`GREEK`, `CJK`); None for Latin and all else."""
    letter = unicodedata.category(character).startswith(("L", "M"))
    name = unicodedata.name(character, "")
    # Below are Latin letters, and the signs that stand for bytes in byte-level BPE.
    if not letter or character < "\u0250" or name.startswith(("LATIN", "COMBINING")):
        return None
    return re.split("[ -]", name)[0]


def count_pieces(tokenizer: Tokenizer, texts: Iterable[Sequence[str]]) -> Counter[int]:
    """How often the tokenizer gives each id on `texts`, special tokens and truncation left out."""
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    whole.no_padding()
    special = {index for index, token in whole.get_added_tokens_decoder().items() if token.special}
    counts: Counter[int] = Counter()
    flat = [text for example in texts for text in example]
    for start in range(0, len(flat), 1000):
        for encoding in whole.encode_batch(flat[start : start + 1000], add_special_tokens=False):
            counts.update(index for index in encoding.ids if index not in special)
    return counts


def _pieces(model: Mapping[str, Any]) -> dict[str, int]:
    """Piece to id of any of the three model types."""
    if model["type"] in ("WordPiece", "BPE"):
        return dict(model["vocab"])
    if model["type"] == "Unigram":
        return {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    raise TeacherError(
        f"the teacher's tokenizer is of type {model['type']}; a vocabulary can be trimmed for WordPiece, "
        "BPE and Unigram; set `vocabulary: null` in the student stage to keep it whole"
    )


def _spelling(model: Mapping[str, Any], pieces: Mapping[str, int]) -> set[str]:
    """The pieces without which some word could not be spelled.

    Single characters and bytes; and, where the teacher has a piece but not all its characters in
    the form they would need, that piece itself.
    """
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    keep = {
        piece
        for piece in pieces
        if len(piece.removeprefix(prefix).removesuffix(suffix)) == 1 or _BYTE.fullmatch(piece)
    }
    keep |= {
        piece for piece in pieces if not all(form in keep for form in _characters(piece, prefix, suffix))
    }
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        keep.add(model["vocab"][model["unk_id"]][0])
    if unknown := model.get("unk_token"):
        keep.add(unknown)
    return keep


def _scripts_of(piece: str, model: Mapping[str, Any]) -> set[str | None]:
    """Scripts of a piece's letters; none for the pieces that stand for bytes."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    core = piece.removeprefix(prefix).removesuffix(suffix)
    return {script_of(character) for character in core}


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNUSED = re.compile(r"\[unused\d+\]")


def _characters(piece: str, prefix: str, suffix: str) -> list[str]:
    """`piece` spelled in single characters: `##ab` is `##a ##b`, `ab` is `a ##b`, `ab</w>` is `a b</w>`."""
    core = piece.removeprefix(prefix).removesuffix(suffix)
    if not core:
        return [piece]
    forms = [prefix + character for character in core]
    if not piece.startswith(prefix):
        forms[0] = core[0]
    if piece.endswith(suffix):
        forms[-1] += suffix
    return forms


def _merged_from(model: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """For BPE: every piece and the two that its first merge joins."""
    found: dict[str, tuple[str, str]] = {}
    for left, right in model.get("merges", ()):
        found.setdefault(_merged(model, left, right), (left, right))
    return found


def _merged(model: Mapping[str, Any], left: str, right: str) -> str:
    """What a merge of BPE makes: `a` and `##b` make `ab`."""
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _closure(piece: str, merged_from: Mapping[str, tuple[str, str]]) -> set[str]:
    """`piece` and the pieces that its merges pass through."""
    found: set[str] = set()
    todo = [piece]
    while todo:
        current = todo.pop()
        found.add(current)
        todo.extend(part for part in merged_from.get(current, ()) if part not in found)
    return found


def _renumber(spec: dict[str, Any], new_ids: Mapping[str, int]) -> None:
    """Rewrite a tokenizer's JSON in place so that it knows only the pieces of `new_ids`."""
    spec["truncation"] = spec["padding"] = None
    model = spec["model"]
    if model["type"] == "Unigram":
        scores = dict(model["vocab"])
        unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else None
        # Tokens that were added behind the vocabulary stay behind it.
        model["vocab"] = [[piece, scores[piece]] for piece in new_ids if piece in scores]
        model["unk_id"] = None if unknown is None else new_ids[unknown]
    else:
        model["vocab"] = {piece: index for piece, index in new_ids.items() if piece in model["vocab"]}
    if model["type"] == "BPE":
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if left in new_ids and right in new_ids and _merged(model, left, right) in new_ids
        ]
    for token in spec["added_tokens"]:
        token["id"] = new_ids[token["content"]]
    _renumber_processor(spec.get("post_processor"), new_ids)


def _renumber_processor(processor: dict[str, Any] | None, new_ids: Mapping[str, int]) -> None:
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        _renumber_processor(inner, new_ids)
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [new_ids[piece] for piece in token["tokens"]]
    for name in ("sep", "cls"):
        if name in processor:
            piece = processor[name][0]
            processor[name] = [piece, new_ids[piece]]

"""The tables of pieces and positions: rows taken from the teacher's, or made of them.

For a vocabulary of other pieces, the teacher's tokenizer cuts a new piece into pieces of its own, and the new
embedding is their mean, as for the words of FVT (Gee et al. 2022, https://arxiv.org/abs/2402.09977).

Deviations: a piece from inside a word (`##ing`) is cut as inside a word, by the longest known pieces first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn


def embed_pieces(teacher: nn.Module, tokenizer: Tokenizer, new: Tokenizer) -> Tensor:
    """The table of pieces for another vocabulary.

    Args:
        teacher: Has the old table.
        tokenizer: The teacher's.
        new: With other pieces, and ids without gaps.

    Returns:
        One row a piece of `new`, [pieces, embedding]; for a piece that the teacher cannot spell, the mean of
        all its rows.
    """
    table = cast(Tensor, cast(Any, teacher).get_input_embeddings().weight).detach()
    vocabulary = new.get_vocab()
    rows = table.mean(dim=0).repeat(len(vocabulary), 1)
    for piece, index in vocabulary.items():
        ids = spelled(tokenizer, piece, new)
        if ids:
            rows[index] = table[torch.tensor(ids)].mean(dim=0)
    return rows


def spelled(tokenizer: Tokenizer, piece: str, new: Tokenizer) -> list[int]:
    """Ids of the teacher's pieces that make up a piece of `new`; empty where they cannot.

    Tokenizers of one type write their pieces in one way; between types, the text of a piece is cut.
    """
    known = tokenizer.token_to_id(piece)
    if known is not None:
        return [known]
    model: Any = tokenizer.model
    if type(model) is not type(new.model):
        text = new.decode([new.get_vocab()[piece]]).removeprefix("##")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    elif marks := _marks(model):
        return _longest(tokenizer, piece, *marks)
    else:
        ids = [token.id for token in model.tokenize(piece)]
    return [] if _unknown(tokenizer) in ids else ids


def _marks(model: Any) -> tuple[str, str] | None:
    """What marks a piece from inside a word, and one at its end, where there are such marks."""
    prefix = getattr(model, "continuing_subword_prefix", None) or ""
    suffix = getattr(model, "end_of_word_suffix", None) or ""
    return (prefix, suffix) if prefix or suffix else None


def _longest(tokenizer: Tokenizer, piece: str, prefix: str, suffix: str) -> list[int]:
    """Ids of the longest known pieces that fit, one after the other; empty where none does."""
    inside = bool(prefix) and piece.startswith(prefix)
    ends = bool(suffix) and piece.endswith(suffix)
    text = piece.removeprefix(prefix).removesuffix(suffix)
    ids: list[int] = []
    while text:
        for stop in range(len(text), 0, -1):
            form = (prefix if inside else "") + text[:stop] + (suffix if ends and stop == len(text) else "")
            found = tokenizer.token_to_id(form)
            if found is not None:
                ids.append(found)
                text, inside = text[stop:], True
                break
        else:
            return []
    return ids


def _unknown(tokenizer: Tokenizer) -> int | None:
    ids = (tokenizer.token_to_id(token) for token in ("[UNK]", "<unk>"))
    return next((index for index in ids if index is not None), None)


@torch.no_grad()
def keep_pieces(model: nn.Module, teacher_ids: Sequence[int]) -> None:
    """Keep the embedding rows of the teacher's pieces `teacher_ids`, ascending, in place."""
    new_ids = {old: new for new, old in enumerate(teacher_ids)}
    rows = cast(Any, model).get_input_embeddings().weight[torch.tensor(teacher_ids)].clone()
    set_pieces(model, rows, new_ids)


@torch.no_grad()
def set_pieces(model: nn.Module, rows: Tensor, new_ids: dict[int, int]) -> None:
    """Give the model another table of pieces, in place.

    Args:
        model: Its config's ids of special pieces are renumbered too.
        rows: The new table, [pieces, embedding].
        new_ids: New id of every old id that is still a piece.
    """
    network = cast(Any, model)
    embedding, config = network.get_input_embeddings(), network.config
    smaller = nn.Embedding(len(rows), embedding.embedding_dim, new_ids.get(embedding.padding_idx))
    smaller.weight = nn.Parameter(rows)
    network.set_input_embeddings(smaller)
    config.vocab_size = len(rows)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, new_ids.get(getattr(config, name)))
    # The RoBERTa family counts positions from behind the id of its padding piece, which may have moved.
    embeddings, padding = network.base_model.embeddings, smaller.padding_idx
    before = getattr(embeddings, "padding_idx", None)
    if before is not None and padding is not None and before != padding:
        embeddings.padding_idx = padding
        count = embeddings.position_embeddings.num_embeddings
        _take_positions(model, before - padding, count, padding)


@torch.no_grad()
def keep_positions(model: nn.Module, max_length: int) -> None:
    """Keep the position embeddings that inputs of `max_length` pieces use, in place."""
    table = getattr(cast(Any, model).base_model.embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    _take_positions(model, 0, min(first + max_length, table.num_embeddings), table.padding_idx)


def _take_positions(model: nn.Module, start: int, stop: int, padding: int | None) -> None:
    """Make rows `start` to `stop` of the position embeddings the whole table, in place."""
    embeddings, size = cast(Any, model).base_model.embeddings, stop - start
    table = embeddings.position_embeddings
    smaller = nn.Embedding(size, table.embedding_dim, padding)
    smaller.weight = nn.Parameter(table.weight[start:stop].clone())
    embeddings.position_embeddings = smaller
    for name in ("position_ids", "token_type_ids"):
        if isinstance(getattr(embeddings, name, None), Tensor):
            setattr(embeddings, name, getattr(embeddings, name)[:, :size])
    cast(Any, model).config.max_position_embeddings = size

"""Words that may stand for a word of a text: algorithm 1 of TinyBERT, lines 1 to 11.

Jiao et al. 2020 (https://arxiv.org/abs/1909.10351): a word of one piece gives way to one of the K words
that a masked language model holds likeliest in its place, a word of several pieces to one of its K nearest
in a table of static embeddings.

Deviations: the static embeddings are the teacher's own input embeddings (a word of several pieces is
their mean) over the words of the user's text, not GloVe. Several words of a text are masked at once, at
most 15 % of its pieces, as the model was trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pocketlm.data.augment import core_of, count_words, is_replaceable
from pocketlm.models.load import EVALUATION_BATCH
from pocketlm.models.masked_lm import MaskedLM, likely_pieces
from pocketlm.progress import Progress

MASKED_AT_ONCE = 0.15
Texts = tuple[str, ...]
Matrix = NDArray[np.float32]


def word_candidates(
    lm: MaskedLM, guessing: MaskedLM | None, texts: Sequence[Texts], count: int, progress: Progress
) -> list[list[dict[int, list[str]]]]:
    """Lines 1 to 11 of algorithm 1: the words that may stand for each word of content.

    Args:
        lm: Its tokenizer tells which words are one piece, its input embeddings are the static ones.
        guessing: What guesses words of one piece; None leaves these to the static embeddings too.
        texts: The examples.
        count: K.
        progress: Shows how far it is.

    Returns:
        For every example and each of its texts: index of a word to its candidates, in lower case.
    """
    flat = [(text,) for example in texts for text in example]
    encoded = lm.encode(flat)
    places = [
        _single_pieces(text, [s for s, o in zip(spans, origins, strict=True) if o >= 0], origins)
        for (text,), spans, origins in zip(flat, encoded.spans, encoded.origins, strict=True)
    ]
    found: list[dict[int, list[str]]] = [{} for _ in flat]
    if guessing is not None:
        _guess(guessing, encoded.ids, encoded.type_ids, places, count, found, progress)
    wanted: dict[str, None] = {}
    for (text,), known in zip(flat, found, strict=True):
        for index, core in _content(text):
            if index not in known:
                wanted[core.casefold()] = None
    neighbours = nearest_words(lm, list(wanted), list(count_words(flat)), count)
    for (text,), known in zip(flat, found, strict=True):
        for index, core in _content(text):
            if index not in known and neighbours.get(core.casefold()):
                known[index] = neighbours[core.casefold()]
        for index, core in _content(text):
            known[index] = [word for word in known.get(index, ()) if word.casefold() != core.casefold()]
    sides = iter(found)
    return [[next(sides) for _ in example] for example in texts]


def _content(text: str) -> list[tuple[int, str]]:
    """Index and letters of every word that may be replaced."""
    parts = ((index, core_of(word)) for index, word in enumerate(text.split()))
    return [(index, part[1]) for index, part in parts if part is not None and is_replaceable(part[1])]


def _single_pieces(text: str, spans: Sequence[tuple[int, int]], origins: Sequence[int]) -> dict[int, int]:
    """Index of every replaceable word that is one piece to the place of that piece."""
    positions = [place for place, origin in enumerate(origins) if origin >= 0]
    found: dict[int, int] = {}
    piece = 0
    for index, match in enumerate(re.finditer(r"\S+", text)):
        part = core_of(match[0])
        if part is None or not is_replaceable(part[1]):
            continue
        start = match.start() + len(part[0])
        end = start + len(part[1])
        while piece < len(spans) and spans[piece][1] <= start:
            piece += 1
        covering = [
            at
            for at in range(piece, min(piece + 2, len(spans)))
            if spans[at][0] < end and spans[at][1] > start
        ]
        if len(covering) == 1 and spans[covering[0]][1] >= end:
            found[index] = positions[covering[0]]
    return found


def _guess(
    lm: MaskedLM,
    ids: Sequence[list[int]],
    type_ids: Sequence[list[int]],
    places: Sequence[dict[int, int]],
    count: int,
    found: list[dict[int, list[str]]],
    progress: Progress,
) -> None:
    """Fill `found` with what the model guesses at the words of one piece."""
    words = whole_words(lm.tokenizer)
    allowed = np.array([word is not None for word in words])
    jobs: list[tuple[int, list[int]]] = []
    for row, mine in enumerate(places):
        indices = list(mine)
        passes = -(-len(indices) // max(1, round(MASKED_AT_ONCE * len(ids[row]))))
        # Words far from each other share a pass, so that each keeps its neighbours.
        jobs += [(row, indices[start::passes]) for start in range(passes)]
    jobs.sort(key=lambda job: len(ids[job[0]]))
    lm.model.eval()
    with progress.task("guess masked words", len(jobs)) as advance:
        for start in range(0, len(jobs), EVALUATION_BATCH):
            batch = jobs[start : start + EVALUATION_BATCH]
            read: list[list[int]] = []
            for row, indices in batch:
                masked = list(ids[row])
                for index in indices:
                    masked[places[row][index]] = lm.mask_id
                read.append(masked)
            best = likely_pieces(lm, read, [type_ids[row] for row, _ in batch], allowed, count + 1)
            for (row, indices), guesses in zip(batch, best, strict=True):
                for index, pieces in zip(indices, guesses, strict=True):
                    own = ids[row][places[row][index]]
                    others = [words[piece] for piece in pieces if piece != own]
                    found[row][index] = [word for word in others if word is not None][:count]
            advance(len(batch))


def whole_words(tokenizer: Tokenizer) -> list[str | None]:
    """For every piece the word of letters that it is by itself; None for parts of words and all else."""
    size = tokenizer.get_vocab_size()
    # A tokenizer without a decoder leaves the mark of a word's end.
    spelled = [tokenizer.decode([piece]).strip().removesuffix("</w>") for piece in range(size)]
    found: list[str | None] = [None] * size
    # Some tokenizers write the blank before a word into its piece.
    for before in ("", " "):
        encodings = tokenizer.encode_batch([before + word for word in spelled], add_special_tokens=False)
        for piece, (word, encoding) in enumerate(zip(spelled, encodings, strict=True)):
            if encoding.ids == [piece] and word.isalpha() and is_replaceable(word):
                found[piece] = word
    return found


def nearest_words(
    lm: MaskedLM, queries: Sequence[str], words: Sequence[str], count: int
) -> dict[str, list[str]]:
    """The `count` words whose static embeddings have the largest cosine with that of each query.

    Args:
        lm: Its input embeddings are the table; a word of several pieces is their mean.
        queries: Words.
        words: What may be found; a query is not found for itself.
        count: K.
    """
    known, asked = static_vectors(lm, words), static_vectors(lm, queries)
    index = {word: place for place, word in enumerate(words)}
    found: dict[str, list[str]] = {}
    for start in range(0, len(queries), 512):
        block = list(queries[start : start + 512])
        cosines = asked[start : start + 512] @ known.T
        for row, query in enumerate(block):
            if query in index:
                cosines[row, index[query]] = -np.inf
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        for row, query in enumerate(block):
            places = cast(list[int], best[row].tolist())
            found[query] = [words[place] for place in places if cosines[row, place] > -np.inf]
    return found


def static_vectors(lm: MaskedLM, words: Sequence[str]) -> Matrix:
    """The mean input embedding of each word's pieces, of length 1, [words, width]."""
    table = cast(Matrix, cast(Any, lm.model).get_input_embeddings().weight.detach().float().numpy())
    table = table - table.mean(axis=0)  # what all pieces share tells none of them apart
    vectors = np.zeros((len(words), table.shape[1]), dtype=np.float32)
    for row, encoding in enumerate(lm.tokenizer.encode_batch(list(words), add_special_tokens=False)):
        if encoding.ids:
            vectors[row] = table[encoding.ids].mean(axis=0)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

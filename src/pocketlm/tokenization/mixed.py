"""One text in the pieces of two vocabularies: every word in the teacher's or in the student's.

Zhao et al. 2019 (https://arxiv.org/abs/1909.11687v1), section 3.1, dual training: words drawn with
probability p_DT are segmented with the student's vocabulary, the others with the teacher's, so that pieces
of both meet as each other's context.

Deviations: special tokens are always the teacher's. Where the student's pieces would make an input longer
than it may be, the rest of its words stay the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from pocketlm.tasks.words import inputs_of


@dataclass(frozen=True)
class Word:
    """A word or a special token of an example, in both vocabularies.

    Args:
        teacher: Its pieces in the teacher's ids.
        student: Its pieces in the student's ids; empty for special tokens.
        type_id: Segment, as the teacher is told it.
        origin: Which text it comes from: 0 or 1; -1 for special tokens.
    """

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    type_id: int
    origin: int


def segment(
    teacher: Tokenizer, student: Tokenizer, texts: Sequence[Sequence[str]], max_length: int
) -> list[list[Word]]:
    """Every example as words in both vocabularies.

    Args:
        teacher: The teacher's tokenizer.
        student: One that normalises text and splits it into words as the teacher's does.
        texts: One or two strings an example.
        max_length: Teacher's pieces an example is cut to.
    """
    inputs = inputs_of(texts)
    teacher.no_padding()
    teacher.enable_truncation(max_length, strategy="longest_first")
    student.no_padding()
    student.no_truncation()
    pairs = zip(teacher.encode_batch(inputs), student.encode_batch(inputs), strict=True)
    return [_words(theirs, ours) for theirs, ours in pairs]


def _words(teacher: Encoding, student: Encoding) -> list[Word]:
    ours: dict[tuple[int, int], list[int]] = {}
    for piece, origin, word in zip(student.ids, student.sequence_ids, student.word_ids, strict=True):
        if origin is not None and word is not None:
            ours.setdefault((origin, word), []).append(piece)
    found: list[tuple[tuple[int, int] | None, list[int], int]] = []
    rows = zip(teacher.ids, teacher.type_ids, teacher.sequence_ids, teacher.word_ids, strict=True)
    for piece, type_id, origin, word in rows:
        key = None if origin is None or word is None else (origin, word)
        if key is not None and found and found[-1][0] == key:
            found[-1][1].append(piece)
        else:
            found.append((key, [piece], type_id))
    return [
        Word(tuple(pieces), tuple(ours.get(key, ())) if key else (), type_id, key[0] if key else -1)
        for key, pieces, type_id in found
    ]


def mix(
    words: Sequence[Word], p_dt: float, offset: int, chance: np.random.Generator, limit: int
) -> tuple[list[int], list[int], list[int]]:
    """Choose a vocabulary for every word.

    Args:
        words: Of `segment`.
        p_dt: Probability that a word is in the student's pieces.
        offset: Added to the student's ids: pieces of the teacher's vocabulary.
        chance: All that is random.
        limit: Most pieces an example may come to.

    Returns:
        ids, type ids and origins (-1 for special tokens) of every piece.
    """
    drawn = chance.random(len(words)) < p_dt
    spare = limit - sum(len(word.teacher) for word in words)
    ids: list[int] = []
    type_ids: list[int] = []
    origins: list[int] = []
    for word, wanted in zip(words, drawn.tolist(), strict=True):
        pieces = list(word.teacher)
        more = len(word.student) - len(word.teacher)
        if wanted and word.student and more <= spare:
            pieces = [offset + piece for piece in word.student]
            spare -= more
        ids += pieces
        type_ids += [word.type_id] * len(pieces)
        origins += [word.origin] * len(pieces)
    return ids, type_ids, origins

"""The words of an example, and what a model says of each of them.

Words follow from (task, texts) alone, so nothing about them has to be stored with a text. A model says
something of a word at the word's first piece, and two models with different pieces meet at the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pocketlm.tasks.task import Task

Text = str | tuple[str, str]
"""An example as the runtime and its tokenizer take it."""

Span = tuple[int, int]
"""Start and end character, the end excluded."""

MISSING = -1
"""The place of a word's first piece where the input was cut before it."""

_RUN = re.compile(r"\S+")
_WORD = re.compile(r"\w+|[^\w\s]")


def inputs_of(texts: Iterable[Sequence[str]]) -> list[Text]:
    """Examples as the runtime and its tokenizer take them: a string, or two strings in a tuple."""
    return [text[0] if len(text) == 1 else (text[0], text[1]) for text in texts]


def words_of(task: Task, texts: Sequence[str]) -> list[Span]:
    """The words of an example, as characters of its `text_of_words`.

    Tags belong to the runs between white space, because their data come as such tokens. An answer may
    start after a bracket and end before a comma, so the words of a context are letters or one sign.

    Args:
        task: Its kind decides what a word is; a task on whole texts has none.
        texts: One or two strings.
    """
    if not task.word_outputs:
        return []
    pattern = _WORD if task.kind == "qa" else _RUN
    return [match.span() for match in pattern.finditer(texts[text_of_words(task)])]


def text_of_words(task: Task) -> int:
    """Which text of an example the words are of: the context of a question is its second."""
    return 1 if task.kind == "qa" else 0


def first_pieces(
    words: Sequence[Span], text: int, origins: Sequence[int], spans: Sequence[Span]
) -> list[int]:
    """The place of the first piece of every word.

    Args:
        words: Ascending spans in the text.
        text: Which text they are of.
        origins: Which text every piece comes from; -1 for special tokens.
        spans: Characters of every piece in its own text.

    Returns:
        One place a word: of the first piece that shares a character with it, `MISSING` where none does.
    """
    found: list[int] = []
    place, pieces = 0, len(spans)
    for start, end in words:
        while place < pieces and (origins[place] != text or spans[place][1] <= start):
            place += 1
        found.append(place if place < pieces and spans[place][0] < end else MISSING)
    return found


@dataclass(frozen=True)
class WordLogits:
    """What a model says of some examples and of each of their words.

    Args:
        text: Of the whole text, float32 [examples, outputs].
        words: Of every word of every example, one after the other, float32 [words, word_outputs]; 0 where
            not known.
        known: False for a word that the model did not see because the input was cut, bool [words].
        offsets: First word of every example, and the end, [examples + 1].
        texts: The examples.
    """

    text: np.ndarray
    words: np.ndarray
    known: np.ndarray
    offsets: np.ndarray
    texts: Sequence[Sequence[str]]

    def __len__(self) -> int:
        return len(self.text)

    def of(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits [words, word_outputs] and known [words] of one example."""
        part = slice(int(self.offsets[example]), int(self.offsets[example + 1]))
        return self.words[part], self.known[part]


class WordSums:
    """Collects what a model says of words, window by window; a word in several windows gets the mean.

    Args:
        task: What the words are.
        texts: The examples.
    """

    def __init__(self, task: Task, texts: Sequence[Sequence[str]]) -> None:
        self.texts, self.words = texts, [words_of(task, text) for text in texts]
        self.offsets = np.cumsum([0, *map(len, self.words)], dtype=np.int64)
        self.sums = np.zeros((int(self.offsets[-1]), task.word_outputs), dtype=np.float32)
        self.times = np.zeros(int(self.offsets[-1]), dtype=np.int64)

    def add(self, example: int, places: Sequence[int], logits: np.ndarray) -> None:
        """Add one window of an example.

        Args:
            example: Which one.
            places: Place of the first piece of each of its words, see `first_pieces`.
            logits: Of every piece of the window, [length, word_outputs].
        """
        at = np.asarray(places, dtype=np.int64)
        seen = np.flatnonzero(at != MISSING)
        self.sums[self.offsets[example] + seen] += logits[at[seen]]
        self.times[self.offsets[example] + seen] += 1

    def logits(self, text: np.ndarray) -> WordLogits:
        """All of it; `text` is what the model says of the whole texts, [examples, outputs]."""
        words = self.sums / np.maximum(self.times, 1)[:, None]
        return WordLogits(text, words, self.times > 0, self.offsets, self.texts)

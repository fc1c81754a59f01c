"""What a student learns of words: from its teacher's word logits, and from their labels.

Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), section 2, for each word; of a question, for the
choice of the first and of the last word of the answer.

Teacher and student read a word at their own first pieces of it, so their vocabularies may differ. A word
that either did not see, because its input was cut, is in no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketlm.distill.losses import logit_kl
from pocketlm.models.heads import gathered
from pocketlm.models.load import Classifier
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import MISSING, words_of
from pocketlm.tokenization.encode import Encoded

FILES = ("word_logits", "word_known", "word_offsets")


@dataclass(frozen=True)
class WordStore:
    """The teacher's logits of every word, float32, memory-mapped.

    Args:
        logits: [words, word_outputs].
        known: False for a word that the teacher did not see, [words].
        offsets: First word of every example, [examples + 1].
    """

    logits: np.ndarray
    known: np.ndarray
    offsets: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> WordStore | None:
        """Map the arrays of a folder; None where its task has no words."""
        paths = [folder / f"{name}.npy" for name in FILES]
        return cls(*(np.load(path, mmap_mode="r") for path in paths)) if paths[0].exists() else None

    def of(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits [batch, words, word_outputs] and their mask [batch, words]."""
        spans = [(int(self.offsets[index]), int(self.offsets[index + 1])) for index in indices]
        most = max(end - start for start, end in spans)
        logits = np.zeros((len(spans), most, self.logits.shape[1]), dtype=np.float32)
        mask = np.zeros((len(spans), most), dtype=np.bool_)
        for row, (start, end) in enumerate(spans):
            logits[row, : end - start] = self.logits[start:end]
            mask[row, : end - start] = self.known[start:end]
        return torch.from_numpy(logits), torch.from_numpy(mask)


def word_offsets(task: Task, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """First word of every example, and the end, int64 [examples + 1]."""
    return np.cumsum([0, *(len(words_of(task, text)) for text in texts)]).astype(np.int64)


def fill_words(store: WordStore, said: Tensor, encoded: Encoded, rows: Sequence[int]) -> None:
    """Fill the store from a batch of the teacher, in place.

    Args:
        store: Opened for writing.
        said: The teacher's word logits of every piece, [batch, length, word_outputs].
        encoded: The examples in the teacher's pieces.
        rows: The examples of the batch.
    """
    for row, index in enumerate(rows):
        places = np.asarray(encoded.words[index], dtype=np.int64)
        at = int(store.offsets[index]) + np.flatnonzero(places != MISSING)
        store.logits[at] = said[row].float().numpy()[places[places != MISSING]]
        store.known[at] = True


def word_distance(
    student: Classifier,
    word_logits: Tensor,
    encoded: Encoded,
    rows: Sequence[int],
    store: WordStore,
    temperature: float,
) -> Tensor:
    """The student's distance from the stored teacher, [batch]; `word_logits` are of every piece."""
    places, mask = student.words(encoded, rows)
    wanted, known = store.of(rows)
    said, mask = gathered(word_logits.float(), places), mask & known
    if student.task.kind == "qa":
        return span_kl(said, wanted, mask, temperature)
    return word_kl(said, wanted, mask, temperature)


def word_kl(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """`logit_kl` of the tags of every word, mean over the unmasked words.

    Args:
        student: Logits, [batch, words, tags].
        teacher: Logits, [batch, words, tags].
        mask: True where a word counts, [batch, words].
        temperature: Above 0.

    Returns:
        Nats, [batch]; 0 for an example without any unmasked word.
    """
    weights = mask.to(student.dtype)
    distance = logit_kl(student, teacher, temperature) * weights
    return distance.sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def span_kl(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """`logit_kl` of the choice among the unmasked words, mean over the two ends of the answer.

    Args:
        student: Logits of every word as the first and as the last one, [batch, words, 2].
        teacher: Logits, [batch, words, 2].
        mask: True where a word can be chosen, [batch, words].
        temperature: Above 0.

    Returns:
        Nats, [batch]; 0 for an example without any unmasked word.
    """
    # Far below every logit, and still finite after the division by the temperature.
    lowest = torch.finfo(student.dtype).min / 1e6
    closed = ~mask[..., None]
    ours, theirs = (side.masked_fill(closed, lowest).transpose(1, 2) for side in (student, teacher))
    return logit_kl(ours, theirs, temperature).mean(dim=1)

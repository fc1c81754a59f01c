"""Answers as spans of a context: the best one, and how SQuAD scores it.

Rajpurkar et al. 2016, SQuAD (https://arxiv.org/abs/1606.05250), section 6.1: exact match and token F1
against each of the right answers, the best counts; both are blind to case, punctuation and articles.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits, words_of

LONGEST_ANSWER = 30
"""Words of the longest answer that is looked for."""

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_SIGNS = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answer:
    """A span of a context.

    Args:
        text: As it stands there; empty where no word of the context was seen.
        start: Its first character.
        end: The character after its last.
        score: Probability of its first word as the start times that of its last word as the end.
    """

    text: str
    start: int
    end: int
    score: float


def best_span(start: np.ndarray, end: np.ndarray, longest: int = LONGEST_ANSWER) -> tuple[int, int]:
    """The first and the last word with the largest sum of logits.

    Args:
        start: Logit of every word as the first one, [words]; -inf where it cannot be.
        end: Logit of every word as the last one, [words].
        longest: Words an answer has at most.
    """
    best, found = -np.inf, (0, 0)
    for apart in range(min(longest, len(start))):
        sums = start[: len(start) - apart] + end[apart:]
        first = int(sums.argmax())
        if sums[first] > best:
            best, found = float(sums[first]), (first, first + apart)
    return found


def answer_of(task: Task, texts: Sequence[str], logits: np.ndarray, known: np.ndarray) -> Answer:
    """The best answer in a context.

    Args:
        task: Of kind `qa`.
        texts: Question and context.
        logits: Start and end logit of every word of the context, [words, 2].
        known: False for a word that the model did not see, [words].
    """
    if not known.any():
        return Answer("", 0, 0, 0.0)
    seen = np.where(known[:, None], logits.astype(np.float64), -np.inf)
    first, last = best_span(seen[:, 0], seen[:, 1])
    chances = np.exp(seen - seen.max(axis=0))
    chances /= chances.sum(axis=0)
    words = words_of(task, texts)
    begin, finish = words[first][0], words[last][1]
    return Answer(texts[1][begin:finish], begin, finish, float(chances[first, 0] * chances[last, 1]))


def answers_said(task: Task, logits: WordLogits) -> list[str]:
    """The text of the best answer to every example."""
    return [answer_of(task, texts, *logits.of(example)).text for example, texts in enumerate(logits.texts)]


def normalized(answer: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLE.sub(" ", answer.lower().translate(_SIGNS)).split())


def exact_match(said: str, right: Sequence[str]) -> float:
    """1 where the answer is one of the right ones, after `normalized`; else 0."""
    return float(any(normalized(said) == normalized(answer) for answer in right))


def token_f1(said: str, right: Sequence[str]) -> float:
    """F1 of the words that answer and right answer share; the best over the right answers, 0 to 1."""
    return max(
        (_token_f1(normalized(said).split(), normalized(answer).split()) for answer in right), default=0.0
    )


def _token_f1(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(list(said) == list(right))
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))

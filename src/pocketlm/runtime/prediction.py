"""What a pocket says of one example, in names and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pocketlm.tasks.answers import answer_of
from pocketlm.tasks.spans import places_said, span_text, spans_of, tags_at
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits

ANSWER = "answer"
"""What the span of an answer is called."""


@dataclass(frozen=True)
class Span:
    """A part of a text.

    Args:
        name: Its slot or type; `answer` for the answer to a question.
        text: As it stands there.
        start: Its first character.
        end: The character after its last.
        score: Probability of all of its tags, taken as independent; of an answer, that of its two ends.
    """

    name: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Prediction:
    """What a pocket says of one example.

    Args:
        label: The best label, or intent; with several labels an example, the best that is above 0.5, or
            None; None where the whole text has no label.
        score: Probability of `label` (with several labels, of the likeliest one); for a regression the
            predicted value; where words alone are asked for, the mean probability of their tags, or that of
            the answer.
        scores: Probability of every label, in the task's order; None where there are none.
        labels: Where an example may have several labels, those above 0.5, the likeliest first; else None.
        spans: Slots, tagged spans, or the one answer; None where words are not asked for.
    """

    label: str | None
    score: float
    scores: dict[str, float] | None
    labels: tuple[str, ...] | None = None
    spans: tuple[Span, ...] | None = None

    @property
    def answer(self) -> str | None:
        """The text of the answer to a question; None where the task is another."""
        found = [span.text for span in self.spans or () if span.name == ANSWER]
        return found[0] if found else None


def predictions(task: Task, logits: np.ndarray | WordLogits) -> list[Prediction]:
    """Logits in words, one prediction an example."""
    if isinstance(logits, WordLogits):
        return [_of_words(task, logits, example) for example in range(len(logits))]
    if task.kind == "regression":
        return [Prediction(None, float(value), None) for value in logits[:, 0]]
    if task.kind == "multilabel":
        return [_several(row, task.labels) for row in logits.astype(np.float64)]
    return [_classified(row, task.labels) for row in softmax(logits)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, computed in float64."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _classified(probabilities: np.ndarray, labels: tuple[str, ...]) -> Prediction:
    scores = dict(zip(labels, probabilities.tolist(), strict=True))
    best = labels[int(probabilities.argmax())]
    return Prediction(best, scores[best], scores)


def _several(logits: np.ndarray, labels: tuple[str, ...]) -> Prediction:
    probabilities = np.exp(-np.logaddexp(0.0, -logits))  # the sigmoid, without overflow
    scores = dict(zip(labels, probabilities.tolist(), strict=True))
    order = np.argsort(-logits, kind="stable")
    chosen = tuple(labels[int(place)] for place in order if logits[place] >= 0)
    return Prediction(chosen[0] if chosen else None, scores[labels[int(order[0])]], scores, chosen)


def _of_words(task: Task, logits: WordLogits, example: int) -> Prediction:
    words, known = logits.of(example)
    texts = logits.texts[example]
    if task.kind == "qa":
        answer = answer_of(task, texts, words, known)
        span = Span(ANSWER, answer.text, answer.start, answer.end, answer.score)
        return Prediction(None, answer.score, None, spans=(span,) if answer.text else ())
    chances = softmax(words) if len(words) else words
    places = places_said(task, words, known)
    likely = chances[np.arange(len(places)), places] if places else np.zeros(0)
    spans = tuple(_span(task, texts, found, likely) for found in spans_of(tags_at(task, places)))
    if task.kind == "tokens":
        return Prediction(None, float(likely[known].mean()) if known.any() else 1.0, None, spans=spans)
    intent = _classified(softmax(logits.text[example]), task.labels)
    return Prediction(intent.label, intent.score, intent.scores, spans=spans)


def _span(task: Task, texts: Sequence[str], found: tuple[str, int, int], likely: np.ndarray) -> Span:
    name, first, last = found
    text, start, end = span_text(task, texts, first, last)
    return Span(name, text, start, end, float(likely[first:last].prod()))

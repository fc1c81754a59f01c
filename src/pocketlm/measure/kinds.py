"""Where teacher and pocket err and differ, for each kind of task: counts, scores by name, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pocketlm.data.examples import Examples
from pocketlm.tasks.answers import answers_said, token_f1
from pocketlm.tasks.metrics import Logits, confusion, label_counts, multi_hot, true_tags
from pocketlm.tasks.spans import by_type, f1_of, span_text, spans_of, tags_said
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits

SHOWN_DISAGREEMENTS = 20
SHOWN_CHARACTERS = 400
SHOWN_NAMES = 40


def confusions(test: Examples, logits: Mapping[str, Logits], task: Task) -> dict[str, Any] | None:
    """Counts [true][predicted] of both sides, of intents in a joint task; None without one label a text."""
    if task.kind not in ("classification", "joint"):
        return None
    return {
        "labels": list(task.labels),
        **{name: confusion(task, said, test.labels) for name, said in logits.items()},
    }


def by_name(test: Examples, logits: Mapping[str, Logits], task: Task) -> list[dict[str, Any]] | None:
    """F1 of both sides for each type of span, or for each of several labels; the commonest first.

    Returns:
        `name`, `of` (how often it is true) and the F1 of each side; None where there is no such table.
    """
    if not task.tags and task.kind != "multilabel":
        return None
    counts: dict[str, dict[str, np.ndarray]] = {}
    for side, said in logits.items():
        if isinstance(said, WordLogits):
            found = by_type(tags_said(task, said), true_tags(task, test.labels))
        else:
            yes, true = said >= 0, multi_hot(task, test.labels)
            found = {
                label: label_counts(yes[:, [place]], true[:, [place]]).sum(axis=0)
                for place, label in enumerate(task.labels)
            }
        for name, row in found.items():
            counts.setdefault(name, {})[side] = row
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "of": max(int(row[2]) for row in sides.values()),
            **{side: f1_of(sides[side]) if side in sides else 0.0 for side in logits},
        }
        for name, sides in counts.items()
    ]
    return sorted(rows, key=lambda row: (-row["of"], row["name"]))[:SHOWN_NAMES]


def disagreements(test: Examples, logits: Mapping[str, Logits], task: Task) -> list[dict[str, Any]]:
    """The texts on which teacher and pocket differ most, most first."""
    said = {name: spoken(task, values) for name, values in logits.items()}
    right = true_spoken(task, test)
    distance = differences(task, logits["teacher"], logits["pocket"])
    order = [int(row) for row in np.argsort(-distance, kind="stable") if distance[row] > 0]
    return [
        {
            "texts": [text[:SHOWN_CHARACTERS] for text in test.texts[row]],
            "label": right[row],
            "teacher": said["teacher"][row],
            "pocket": said["pocket"][row],
        }
        for row in order[:SHOWN_DISAGREEMENTS]
    ]


def differences(task: Task, teacher: Logits, pocket: Logits) -> np.ndarray:
    """How far two models are apart on each example, 0 where they say the same, [examples].

    Numbers: their distance. One label: by how many logits each prefers its own. Several labels, tags and
    intents: how many differ. Answers: how little their words overlap.
    """
    if isinstance(teacher, WordLogits) or isinstance(pocket, WordLogits):
        assert isinstance(teacher, WordLogits) and isinstance(pocket, WordLogits)
        return _word_differences(task, teacher, pocket)
    if task.kind == "regression":
        return np.abs(teacher - pocket)[:, 0]
    if task.kind == "multilabel":
        return ((teacher >= 0) != (pocket >= 0)).sum(axis=1)
    rows = np.arange(len(teacher))
    of_teacher, of_pocket = teacher.argmax(axis=1), pocket.argmax(axis=1)
    margin = (
        teacher[rows, of_teacher]
        - teacher[rows, of_pocket]
        + pocket[rows, of_pocket]
        - pocket[rows, of_teacher]
    )
    return np.where(of_teacher == of_pocket, 0, margin)


def _word_differences(task: Task, teacher: WordLogits, pocket: WordLogits) -> np.ndarray:
    if task.kind == "qa":
        pairs = zip(answers_said(task, teacher), answers_said(task, pocket), strict=True)
        return np.array([0.0 if one == other else 1.01 - token_f1(one, [other]) for one, other in pairs])
    tags = zip(tags_said(task, teacher), tags_said(task, pocket), strict=True)
    counts = np.array([len(set(spans_of(one)) ^ set(spans_of(other))) for one, other in tags])
    if task.outputs:
        counts = counts + (teacher.text.argmax(axis=1) != pocket.text.argmax(axis=1))
    return counts


def spoken(task: Task, logits: Logits) -> list[str]:
    """What a model says of each example, as a reader would write it."""
    if isinstance(logits, WordLogits):
        if task.kind == "qa":
            return answers_said(task, logits)
        spans = [
            in_words(task, texts, tags)
            for texts, tags in zip(logits.texts, tags_said(task, logits), strict=True)
        ]
        if not task.outputs:
            return spans
        intents = [task.labels[int(place)] for place in logits.text.argmax(axis=1)]
        return [f"{intent} · {slots}" for intent, slots in zip(intents, spans, strict=True)]
    if task.kind == "regression":
        return [f"{value:.2f}" for value in logits[:, 0]]
    if task.kind == "multilabel":
        return [_listed(task, np.flatnonzero(row).tolist()) for row in logits >= 0]
    return [task.labels[int(label)] for label in logits.argmax(axis=1)]


def true_spoken(task: Task, test: Examples) -> list[str]:
    """The right answer to each example, written as `spoken` writes it."""
    labels = test.labels
    if task.kind == "regression":
        return [f"{value:g}" for value in labels]
    if task.kind == "multilabel":
        return [_listed(task, indices) for indices in labels]
    if task.kind == "qa":
        return [label["answers"][0] for label in labels]
    if not task.tags:
        return [task.labels[int(label)] for label in labels]
    spans = [
        in_words(task, texts, tags) for texts, tags in zip(test.texts, true_tags(task, labels), strict=True)
    ]
    if not task.outputs:
        return spans
    names: list[str] = [
        task.labels[label["intent"]] if label["intent"] >= 0 else "(not in train)" for label in labels
    ]
    return [f"{intent} · {slots}" for intent, slots in zip(names, spans, strict=True)]


def in_words(task: Task, texts: Any, tags: list[str]) -> str:
    """Tagged spans as `type: text`, in their order; `-` where there is none."""
    found = [f"{name}: {span_text(task, texts, start, end)[0]}" for name, start, end in spans_of(tags)]
    return "; ".join(found) or "-"


def _listed(task: Task, indices: list[int]) -> str:
    return ", ".join(task.labels[place] for place in indices) or "-"

"""Is a model better than guessing, and do its outputs mean what their names say?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from scipy.optimize import linear_sum_assignment  # pyright: ignore[reportUnknownVariableType]

from pocketlm.diagnose.finding import Finding, Side
from pocketlm.tasks.metrics import Labels, Logits, confusion, intents, pearson, score, true_tags
from pocketlm.tasks.spans import tags_said
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits

CERTAIN = 4.0
"""Standard errors beyond which a difference is none of chance."""
LIKELY = 2.0


def of_labels(side: Side, task: Task, logits: Logits, labels: Labels) -> list[Finding]:
    """What is wrong with what a model says of examples whose labels are known.

    Args:
        side: Whose logits these are.
        task: What it was asked to do.
        logits: As the model gave them.
        labels: True ones, of the same examples.
    """
    if task.kind == "regression":
        return _of_numbers(side, np.asarray(logits)[:, 0], np.asarray(labels, dtype=float))
    found: list[Finding] = []
    if task.labels and task.kind != "multilabel":
        kept = np.flatnonzero(intents(labels) >= 0) if task.kind == "joint" else np.arange(len(labels))
        counts = np.array(confusion(task, logits, labels))
        found += _guessing(side, counts, task.labels) if len(kept) else []
        found += _order(side, counts, task.labels, "labels")
    if isinstance(logits, WordLogits) and task.tags:
        counts = _tag_counts(task, logits, labels)
        found += _order(side, counts, task.tags, "tags")
    metric = score(task, logits, labels)[task.metric]
    if not found and metric <= 0:
        found.append(_no_better(side, f"its {task.metric} is {metric:.3f}"))
    return found


def swapped(counts: np.ndarray) -> list[tuple[int, ...]]:
    """Cycles of outputs that stand in each other's place.

    Args:
        counts: Examples of every true label for which each output was the largest, [true, said].

    Returns:
        For every cycle (a, b, …): label a is said by the output of b, and so on round. Only cycles in which
        so many examples come out right that it cannot be chance.
    """
    best: np.ndarray = cast(Any, linear_sum_assignment)(-counts)[1]  # [labels], the output that says each
    cycles: list[tuple[int, ...]] = []
    seen: set[int] = set()
    for start in range(len(best)):
        cycle: list[int] = []
        place = start
        while place not in seen:
            seen.add(place)
            cycle.append(place)
            place = int(best[place])
        rows = np.array(cycle, dtype=int)
        if len(rows) > 1:
            gained, lost = counts[rows, best[rows]], counts[rows, rows]
            beyond = (gained - lost) / np.sqrt(np.maximum(gained + lost, 1))
            # Of many labels the best of all assignments gains by chance, but not in every one of them.
            together = (gained.sum() - lost.sum()) / math.sqrt(max((gained + lost).sum(), 1))
            if beyond.min() > LIKELY and together > CERTAIN:
                cycles.append(tuple(cycle))
    return cycles


def _guessing(side: Side, counts: np.ndarray, names: Sequence[str]) -> list[Finding]:
    examples, right = int(counts.sum()), int(np.trace(counts))
    often = counts.sum(axis=1)
    most = int(often.argmax())
    share = often[most] / examples
    beyond = right - examples * share
    # Where all have one label, no model can be better than to say it.
    if share == 1 or beyond > LIKELY * math.sqrt(examples * share * (1 - share)):
        return []
    return [
        _no_better(
            side,
            f"it is right on {right / examples:.1%} of {examples} texts, and to say {names[most]!r} of all "
            f"is on {share:.1%}",
        )
    ]


def _no_better(side: Side, why: str) -> Finding:
    advice = {
        "teacher": "nothing can be learned from it; look at its labels, the columns of the data, and the "
        "learning rate of finetune",
        "pocket": "look at the findings below, and at the curve of distill in report.html",
    }
    return Finding("majority", True, f"the {side} is no better than guessing: {why}; {advice[side]}")


def _order(side: Side, counts: np.ndarray, names: Sequence[str], what: str) -> list[Finding]:
    rounds = ["; ".join(f"{names[a]!r}" for a in cycle) for cycle in swapped(counts)]
    if not rounds:
        return []
    mend = {
        "teacher": "config.json may name its outputs in another order (id2label): mend that, or fine-tune it "
        "with --fine-tune always",
        "pocket": "pocket.json may list them in another order than the model was trained with: make it anew",
    }
    return [
        Finding("labels", True, f"{what} of the {side} stand in each other's place: {one}; {mend[side]}")
        for one in rounds
    ]


def _tag_counts(task: Task, logits: WordLogits, labels: Labels) -> np.ndarray:
    """Words of every true tag that were given each tag, [tags, tags]; tags that train lacks are left out."""
    index = {tag: place for place, tag in enumerate(task.tags)}
    counts = np.zeros((len(index), len(index)), dtype=int)
    for said, true in zip(tags_said(task, logits), true_tags(task, labels), strict=True):
        for one, other in zip(said, true, strict=True):
            if other in index:
                counts[index[other], index[one]] += 1
    return counts


def _of_numbers(side: Side, said: np.ndarray, true: np.ndarray) -> list[Finding]:
    correlation = pearson(said, true)
    if correlation * math.sqrt(len(true)) < -CERTAIN:
        text = f"the {side} says the opposite: its numbers and the labels correlate at {correlation:.2f}"
        return [Finding("labels", True, f"{text}; look whether the labels' scale was turned round")]
    if correlation * math.sqrt(len(true)) < LIKELY:
        return [_no_better(side, f"its numbers and the labels correlate at {correlation:.2f}")]
    return []

"""Which tag follows which: counted on train, and weighed with what a model says of each word.

Viterbi 1967, as in Rabiner 1989, "A Tutorial on Hidden Markov Models" (https://doi.org/10.1109/5.18626),
section III.B: the best sequence of tags rather than the best tag of each word. A network's probabilities are
divided by those of the tags alone, as in Bourlard and Morgan 1993, "Connectionist Speech Recognition"
(https://doi.org/10.1007/978-1-4615-3210-1), chapter 7:

    score(t_1 … t_n) = Σ_i log p(t_i | words) + w · (log p(t_i | t_{i-1}) - log p(t_i))

Deviations: w = 1/2 and not 1, because the network has seen the neighbours of a word, too; the counts are
smoothed by 0.1, so that no sequence is impossible. Nothing here is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from pocketlm.tasks.task import START, Task, Transitions

WEIGHT = 0.5
SMOOTHING = 0.1


def count_transitions(task: Task, sequences: Iterable[Sequence[str]]) -> Transitions:
    """How often each tag follows each other, and begins a sequence.

    Args:
        task: Its tags.
        sequences: Tag names of the task, a sequence an example.
    """
    index = {tag: place for place, tag in enumerate(task.tags)}
    counts: Counter[tuple[int, int]] = Counter()
    for sequence in sequences:
        places = [START, *(index[tag] for tag in sequence)]
        counts.update(pairwise(places))
    return tuple((one, next_, count) for (one, next_), count in sorted(counts.items()))


@lru_cache(maxsize=16)
def gains(transitions: Transitions, tags: int) -> np.ndarray:
    """What a path gains by a tag after another, float32 [tags + 1, tags]; the last row begins a path."""
    counts = np.full((tags + 1, tags), SMOOTHING)
    for one, next_, count in transitions:
        counts[one, next_] += count  # START is -1: the last row
    chances = counts / counts.sum(axis=1, keepdims=True)
    alone = counts.sum(axis=0) / counts.sum()
    return (WEIGHT * (np.log(chances) - np.log(alone))).astype(np.float32)


def best_tags(task: Task, logits: np.ndarray) -> np.ndarray:
    """The best sequence of tags for the words of one example, int [words].

    Args:
        task: Without transitions, every word gets its own best tag.
        logits: Float [words, tags].
    """
    if not task.transitions or not len(logits):
        return logits.argmax(axis=1)
    gain = gains(task.transitions, len(task.tags))
    reached = logits[0] + gain[START]
    before: list[np.ndarray] = []
    # Logits stand for log p(tag | words): they differ by a constant of the word, which all paths pay.
    for word in logits[1:]:
        paths = reached[:, None] + gain[:START]
        before.append(paths.argmax(axis=0))
        reached = paths.max(axis=0) + word
    best = [int(reached.argmax())]
    for choice in reversed(before):
        best.append(int(choice[best[-1]]))
    return np.array(best[::-1])

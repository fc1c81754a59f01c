"""What a model is asked to do: the one description that data, models, pockets and reports share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from pocketlm.errors import PocketError

Kind = Literal["classification", "regression", "multilabel", "tokens", "joint", "qa"]
KINDS: tuple[Kind, ...] = get_args(Kind)
METRICS: dict[Kind, str] = {
    "classification": "accuracy",
    "regression": "pearson",
    "multilabel": "micro_f1",
    "tokens": "span_f1",
    "joint": "sentence_accuracy",
    "qa": "f1",
}
ANSWER_OUTPUTS = ("start", "end")
OUTSIDE = "O"
"""The tag of a word that is in no span."""
Transitions = tuple[tuple[int, int, int], ...]
"""A tag, one that follows it, and how often it does; `START` where it is the first."""
START = -1
MOST_COUNTED = 10**12


@dataclass(frozen=True)
class Task:
    """A task on single texts or on pairs of texts.

    A model says something of the whole text (`outputs` numbers), of each of its words (`word_outputs`
    numbers a word), or both.

    Args:
        kind: `classification` (one label of several), `regression` (one number), `multilabel` (any of the
            labels), `tokens` (a tag for every word), `joint` (a label and a tag for every word: intent and
            slots) or `qa` (the words of the second text that answer the first).
        pair: True where an example is two texts.
        labels: Label names in the order of the logits; empty where the whole text has no label.
        tags: Tag names in the order of the word logits; empty where words have no tags.
        transitions: Which tag follows which in train, see `pocketlm.tasks.transitions`; may be empty.
    """

    kind: Kind
    pair: bool
    labels: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    transitions: Transitions = ()

    @property
    def outputs(self) -> int:
        """Number of logits of the whole text."""
        return 1 if self.kind == "regression" else len(self.labels)

    @property
    def word_outputs(self) -> int:
        """Number of logits of every word: one a tag; of a question, one for the start and one for the end."""
        return len(ANSWER_OUTPUTS) if self.kind == "qa" else len(self.tags)

    @property
    def names(self) -> tuple[str, ...]:
        """What the outputs of the main head mean, in order: labels, or tags, or start and end."""
        if self.kind == "qa":
            return ANSWER_OUTPUTS
        return self.tags if self.kind == "tokens" else self.labels

    @property
    def metric(self) -> str:
        """Name of the headline metric."""
        return METRICS[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {**asdict(self), "labels": list(self.labels), "tags": list(self.tags)}
        values["transitions"] = [list(counted) for counted in self.transitions]
        missing = [name for name in ("tags", "transitions") if not values[name]]
        return {name: value for name, value in values.items() if name not in missing}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Task:
        """The inverse of `to_dict`.

        Raises:
            PocketError: the values do not describe a task.
        """
        kind, pair, labels = values.get("kind"), values.get("pair"), values.get("labels")
        tags = values.get("tags", [])
        if kind not in KINDS or not isinstance(pair, bool):
            raise PocketError(f"not a task this version knows: {values!r}; allowed kinds: {', '.join(KINDS)}")
        for what, names in (("labels", labels), ("tags", tags)):
            if not isinstance(names, list) or not all(isinstance(x, str) for x in cast(list[Any], names)):
                raise PocketError(f"the {what} of a task are a list of names, not {names!r}")
        names = tuple(cast(list[str], tags))
        transitions = _transitions(values.get("transitions", []), len(names))
        return cls(kind, pair, tuple(cast(list[str], labels)), names, transitions)


def _transitions(values: Any, tags: int) -> Transitions:
    """Checked, because they may come from a file of anybody's."""

    def is_count(value: Any) -> bool:
        return isinstance(value, list) and [type(part) for part in cast(list[Any], value)] == [int] * 3

    if not isinstance(values, list) or not all(map(is_count, cast(list[Any], values))):
        raise PocketError(f"the transitions of a task are a list of [tag, next tag, count], not {values!r}")
    found = cast(list[list[int]], values)
    for one, next_, count in found:
        if not (START <= one < tags and 0 <= next_ < tags and 0 < count <= MOST_COUNTED):
            raise PocketError(
                f"transition {[one, next_, count]} does not fit: allowed are tags from 0 to {tags - 1}, "
                f"{START} for the beginning, and counts from 1 to {MOST_COUNTED}"
            )
    return tuple((one, next_, count) for one, next_, count in found)

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
    """

    kind: Kind
    pair: bool
    labels: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

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
        return values if self.tags else {name: value for name, value in values.items() if name != "tags"}

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
        return cls(
            kind=kind, pair=pair, labels=tuple(cast(list[str], labels)), tags=tuple(cast(list[str], tags))
        )

"""What a model is asked to do: the one description that data, models, pockets and reports share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from pocketlm.errors import PocketError

Kind = Literal["classification", "regression"]


@dataclass(frozen=True)
class Task:
    """A task on single texts or on pairs of texts.

    Args:
        kind: `classification` (one label of several) or `regression` (one number).
        pair: True where an example is two texts.
        labels: Label names in the order of the logits; empty for regression.
    """

    kind: Kind
    pair: bool
    labels: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return len(self.labels) if self.kind == "classification" else 1

    @property
    def metric(self) -> str:
        """Name of the headline metric."""
        return "accuracy" if self.kind == "classification" else "pearson"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Task:
        """The inverse of `to_dict`.

        Raises:
            PocketError: the values do not describe a task.
        """
        kind, pair, labels = values.get("kind"), values.get("pair"), values.get("labels")
        if kind not in ("classification", "regression") or not isinstance(pair, bool):
            raise PocketError(
                f"not a task this version knows: {values!r}; allowed kinds: classification, regression"
            )
        if not isinstance(labels, list) or not all(isinstance(x, str) for x in cast(list[Any], labels)):
            raise PocketError(f"the labels of a task are a list of names, not {labels!r}")
        return cls(kind=kind, pair=pair, labels=tuple(cast(list[str], labels)))

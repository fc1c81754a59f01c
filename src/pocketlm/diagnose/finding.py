"""What the doctor has to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["teacher", "pocket"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Args:
        check: What was asked: `majority`, `labels`, `vocabulary`, `unknown`, `graph`, `saturation`,
            `outliers`, `divergence` or `speed`.
        fault: True where the pocket is broken; False where it could be better.
        text: What is so, with the figures, and what to do.
        patch: Fields of the recipe that mend it, stage to field to value.
    """

    check: str
    fault: bool
    text: str
    patch: Mapping[str, Mapping[str, object]] | None = None

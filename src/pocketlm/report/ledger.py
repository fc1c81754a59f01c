"""Reading a parsed `pocket.json`, where any value may be null because it was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under `key`; an empty one where it is null or absent."""
    found: Mapping[str, Any] | None = values.get(key)
    return {} if found is None else found


def listed(values: Mapping[str, Any], key: str) -> Sequence[Any]:
    """The list under `key`; an empty one where it is null or absent."""
    found: Sequence[Any] | None = values.get(key)
    return () if found is None else found


def text(values: Mapping[str, Any], key: str, otherwise: str) -> str:
    """The text under `key`; `otherwise` where it is null, absent or empty."""
    found: Any = values.get(key)
    return str(found) if found else otherwise


def first_row(ledger: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The first row of a kind; an empty one where there is none."""
    rows: Sequence[Mapping[str, Any]] = listed(ledger, "rows")
    for row in rows:
        if row.get("kind") == kind:
            return row
    return {}

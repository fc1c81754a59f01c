"""Cut a held-out part from rows, the same part wherever and in whatever order the rows come.

A row's side is decided by the hash of its key alone: groups are ranked by sha256 of `seed:key`, and
the lowest go to the held-out part. Rows that share a key (a film, or the same text) never part.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from pocketlm.errors import DataError, RecipeError


def check_fraction(name: str, value: float) -> None:
    """Refuse a fraction that leaves one side empty.

    Raises:
        RecipeError: `value` is not between 0 and 1, both excluded.
    """
    if not 0 < value < 1:
        raise RecipeError(
            f"{name}={value} is out of range; allowed: more than 0 and less than 1, such as 0.1"
        )


def cut(keys: Sequence[str], fraction: float, seed: int, strata: Sequence[str] | None = None) -> list[bool]:
    """Choose the rows of the held-out part: about `fraction` of the groups, at least one, never all.

    Args:
        keys: Group of each row.
        fraction: Wanted share of the groups, not of the rows; with strata, of the groups in each.
        seed: Another seed cuts another part.
        strata: Class of each row. A group belongs to its most frequent class (ties: the first by code
            point), and no class gives away its last group.

    Returns:
        One value per row, True where it is held out.

    Raises:
        RecipeError: `fraction` is out of range.
        DataError: there are too few groups for two sides.
    """
    check_fraction("fraction", fraction)
    groups = set(keys)
    if len(groups) < 2:
        raise DataError(
            f"cannot cut {len(keys)} rows in {len(groups)} group(s) into two parts: at least 2 different "
            "groups are needed; add rows, give this split as a file, or group by another column"
        )
    strata_of = _strata(keys, strata) if strata is not None else dict.fromkeys(groups, "")
    members: defaultdict[str, list[str]] = defaultdict(list)
    for group in _ranked(groups, seed):
        members[strata_of[group]].append(group)
    sizes = _shares({stratum: len(members[stratum]) for stratum in sorted(members)}, fraction)
    if not any(sizes.values()):
        largest = max(sizes, key=lambda stratum: len(members[stratum]))
        sizes[largest] = 1
        if len(members[largest]) < 2:
            raise DataError(
                f"cannot cut a stratified part: each of the {len(members)} labels has one group only; "
                "give this split as a file, or cut without strata"
            )
    held = {group for stratum, ranked in members.items() for group in ranked[: sizes[stratum]]}
    return [key in held for key in keys]


def sample(keys: Sequence[str], count: int, seed: int) -> list[int]:
    """Indices, ascending, of the `count` rows whose keys rank lowest: stable when other rows come or go."""
    digests = {key: _digest(key, seed) for key in set(keys)}
    return sorted(sorted(range(len(keys)), key=lambda row: (digests[keys[row]], row))[:count])


def _digest(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _ranked(groups: set[str], seed: int) -> list[str]:
    return sorted(groups, key=lambda group: (_digest(group, seed), group))


def _shares(counts: dict[str, int], fraction: float) -> dict[str, int]:
    """Groups to hold out of each stratum, less than one away from its exact share.

    What rounding takes from one stratum the next gets, so many small strata still make `fraction` of
    the whole.
    """
    shares: dict[str, int] = {}
    before = 0
    for stratum, count in counts.items():
        share = int((before + count) * fraction + 0.5) - int(before * fraction + 0.5)
        shares[stratum] = min(share, count - 1)  # one group stays behind
        before += count
    return shares


def _strata(keys: Sequence[str], strata: Sequence[str]) -> dict[str, str]:
    """The most frequent class of each group."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for key, stratum in zip(keys, strata, strict=True):
        counts[key][stratum] += 1
    return {key: min(count, key=lambda name: (-count[name], name)) for key, count in counts.items()}

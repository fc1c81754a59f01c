"""The page of a study of lottery tickets: how much may go, which control comes close, what fits elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketlm.report import marks, units
from pocketlm.report.page import render_page, write_page
from pocketlm.report.scales import nice_ticks, padded, scale

CONTROLS = {
    ("random", "rewound"): "random mask",
    ("found", "random"): "random weights",
    ("one-shot", "rewound"): "one-shot",
}
PARTS = (
    *(("query", "query"), ("key", "key"), ("value", "value"), ("output", "attention out")),
    *(("rising", "FFN in"), ("falling", "FFN out")),
)


def write_tickets_report(study: Mapping[str, Any], path: Path) -> None:
    """Write the page of a study.

    Args:
        study: The content of `tickets.json`, see `pocketlm.verbs.tickets`.
        path: Of the page.

    Raises:
        MissingExtraError: jinja2 is not installed.
        StorageError: the disk is full, or the folder cannot be written.
    """
    write_page(render_page("tickets.html", _page(study)), path)


def _page(study: Mapping[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup  # comes with jinja2, and marks.py escapes every text

    tasks: Mapping[str, Mapping[str, Any]] = study["tasks"]
    pictures = [{"name": name, "drawing": Markup(sparsity_picture(task))} for name, task in tasks.items()]
    return {
        "kind": "pocketlm tickets of",
        "name": units.shorten(str(study["teacher"]), 80),
        "when": "",
        "rows": [{"name": name, **_row(task)} for name, task in tasks.items()],
        "controls": list(CONTROLS.values()),
        "pictures": pictures,
        "transfer": transfer_map(study),
        "kept": [{"name": name, "rows": kept_map(task)} for name, task in tasks.items() if task["kept"]],
        "parts": [title for _, title in PARTS],
        "masked_lm": _masked_lm(study["masked_lm"]),
        "plan": [(name.replace("_", " "), str(value)) for name, value in study["plan"].items()],
        "minutes": units.with_unit(study["minutes"], "min"),
    }


def share_told(share: float) -> str:
    """A sparsity in whole percent."""
    return f"{units.fixed(100 * share, 0)}{units.NARROW}%"


def scores(
    task: Mapping[str, Any], number: int, split: str, kind: str = "found", weights: str = "rewound"
) -> list[float]:
    """The scores of one ticket, one a seed; round 0 is the whole network."""
    return [
        trial[split]
        for trial in task["trials"]
        if (trial["round"], trial["kind"], trial["weights"]) == (number, kind, weights)
    ]


def _row(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's line of the table: its best ticket, or the sparsest that was compared with controls."""
    best = task["winning_round"]
    shown = best or max(trial["round"] for trial in task["trials"] if trial["kind"] == "random")
    sparsity = task["sparsities"][shown - 1]
    metric = task["metric"]
    return {
        "metric": units.metric_name(metric),
        "wins": bool(best),
        "sparsity": share_told(sparsity),
        "dense": spread(scores(task, 0, "test"), metric),
        "ticket": spread(scores(task, shown, "test"), metric),
        "controls": [spread(scores(task, shown, "test", *control), metric) for control in CONTROLS],
    }


def spread(values: Sequence[float], metric: str) -> str:
    """Mean and sample deviation, or the dash."""
    if not values:
        return units.NOT_MEASURED
    mean = units.score(statistics.fmean(values), metric)
    return mean if len(values) < 2 else f"{mean} ± {units.score(statistics.stdev(values), metric)}"


def sparsity_picture(task: Mapping[str, Any], width: int = 420, height: int = 260) -> str:
    """Score on valid against sparsity: the tickets with their band, the whole network's, and the controls.

    Args:
        task: Of `tickets.json`.
        width: Width in CSS pixels.
        height: Height in CSS pixels.

    Returns:
        An `<svg>` element.
    """
    left, right, top, bottom = 46.0, width - 8.0, 24.0, height - 36.0
    metric, sparsity = task["metric"], task["sparsities"]
    found = {number: scores(task, number, "valid") for number in range(len(sparsity) + 1)}
    found = {number: values for number, values in found.items() if values}
    controls = {
        title: {
            number: statistics.fmean(values)
            for number in found
            if (values := scores(task, number, "valid", *control))
        }
        for control, title in CONTROLS.items()
    }
    drawn = [value for values in found.values() for value in values]
    drawn += [value for means in controls.values() for value in means.values()]
    low, high = padded(min(drawn), max(drawn), 0.01)

    def x(number: int) -> float:
        return scale(sparsity[number - 1] if number else 0.0, 0.0, max(sparsity), left + 6, right - 6)

    def y(value: float) -> float:
        return scale(value, low, high, bottom - 6, top + 6)

    name = units.metric_name(metric)
    parts = [marks.opened(width, height, f"{name} on valid against sparsity")]
    for tick in nice_ticks(low, high):
        parts += [
            marks.line("grid", left, y(tick), right, y(tick)),
            marks.text("tick", left - 6, y(tick) + 4, "end", units.score(tick, metric)),
        ]
    dense = found[0]
    mean, deviation = statistics.fmean(dense), statistics.stdev(dense) if len(dense) > 1 else 0.0
    parts += [
        '<g class="teacher">',
        marks.band(
            [(left, y(mean - deviation)), (right, y(mean - deviation))],
            [(left, y(mean + deviation)), (right, y(mean + deviation))],
        ),
        marks.line("level", left, y(mean), right, y(mean)),
        "</g>",
        '<g class="pocket">',
        marks.band(
            [(x(number), y(min(values))) for number, values in found.items()],
            [(x(number), y(max(values))) for number, values in found.items()],
        ),
        marks.polyline("score", [(x(n), y(statistics.fmean(values))) for n, values in found.items()]),
        "</g>",
        '<g class="control">',
    ]
    for title, means in controls.items():
        for number, value in means.items():
            told = f"{title}: {units.score(value, metric)}"
            parts.append(marks.dot("mark", x(number), y(value), 2.6, told))
        if means:
            last = max(means)
            parts.append(marks.text("figures", x(last) - 6, y(means[last]) + 4, "end", title))
    parts.append("</g>")
    for number in (0, len(sparsity) // 2, len(sparsity)):
        share = sparsity[number - 1] if number else 0.0
        told = share_told(share)
        parts.append(marks.text("tick", x(number), height - 20, "middle", told))
    parts += [
        marks.line("rule", left, bottom, right, bottom),
        marks.text("axis-name", 4, 14, "start", f"↑ {name} on valid"),
        marks.text("axis-name", right, height - 4, "end", "weights removed →"),
        "</svg>",
    ]
    return "".join(parts)


def transfer_map(study: Mapping[str, Any]) -> dict[str, Any] | None:
    """Mean test score of every ticket on every task, over the whole network's; None where none was lent."""
    trials: Sequence[Mapping[str, Any]] = study["transfer"]
    if not trials:
        return None
    targets = list(study["tasks"])
    dense = {name: statistics.fmean(scores(task, 0, "test")) for name, task in study["tasks"].items()}
    rows: dict[tuple[str, int, float], dict[str, list[float]]] = {}
    for trial in trials:
        key = (trial["source"], trial["round"], trial["sparsity"])
        rows.setdefault(key, {}).setdefault(trial["target"], []).append(trial["test"])
    shares = {
        key: {target: statistics.fmean(values) / dense[target] for target, values in row.items()}
        for key, row in rows.items()
    }
    low = min(share for row in shares.values() for share in row.values())
    return {
        "targets": targets,
        "rows": [
            {
                "source": source,
                "sparsity": share_told(sparsity),
                "cells": [_cell(row.get(target), low, 1.0, target == source) for target in targets],
            }
            for (source, _, sparsity), row in shares.items()
        ],
    }


def _cell(share: float | None, low: float, high: float, own: bool) -> dict[str, Any]:
    """What a cell says, and how dark it is: 0 at the least, 1 at the most."""
    if share is None:
        return {"told": units.NOT_MEASURED, "share": 0.0, "own": own}
    return {
        "told": units.percent(100 * share),
        "share": min(1.0, max(0.0, scale(share, low, high, 0.0, 1.0))),
        "own": own,
    }


def kept_map(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fraction kept of every map of every layer, the first layer first."""
    kept: Mapping[str, Sequence[float]] = task["kept"]
    layers = len(next(iter(kept.values())))
    values = [share for part, _ in PARTS for share in kept[part]]
    return [
        {
            "layer": layer + 1,
            "cells": [_cell(kept[part][layer], min(values), max(values), False) for part, _ in PARTS],
        }
        for layer in range(layers)
    ]


def _masked_lm(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    nats: Sequence[float] = found["nats"]
    best = found["winning_round"]
    sparsity = share_told(found["sparsities"][best - 1]) if best else None
    shares = [0.0, *found["sparsities"]]
    return {
        "sparsity": sparsity,
        "rows": [
            (share_told(share), units.fixed(value, 3)) for share, value in zip(shares, nats, strict=False)
        ],
    }

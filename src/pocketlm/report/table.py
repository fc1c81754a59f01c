"""The ledger as a table: the same cells on the page, in the terminal and in a model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketlm.report import units
from pocketlm.report.ledger import listed, section, text

if TYPE_CHECKING:
    from rich.table import Table

LABEL_LIMIT = 60


@dataclass(frozen=True)
class Column:
    """One figure of the ledger.

    Args:
        key: Its key in a row of `ledger_rows`.
        title: The heading.
        explained: What the figure is, in a few words.
        always: Shown even where no row was measured; other columns are then left out.
    """

    key: str
    title: str
    explained: str
    always: bool = False


def ledger_rows(ledger: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every row of the ledger with its figures formatted; what was not measured is an en dash.

    Args:
        ledger: The `ledger` of a parsed `pocket.json`.

    Returns:
        One dictionary a row, teacher first, then the pocket, then the controls. Keys: `name`, `kind`,
        `label`, `score`, `interval`, `retention`, `retention_interval` (intervals are empty where
        unknown), `size`, `parameters`, `p50`, `p95`, `eager_p50`, `throughput`, `ram`, `start`, `training`,
        `energy`, and `metric_NAME` for each further metric.
    """
    metric = text(ledger, "metric", "score")
    others = _other_metrics(ledger)
    rows = sorted(listed(ledger, "rows"), key=lambda row: _ORDER.get(row.get("kind"), len(_ORDER)))
    return [_cells(row, metric, others) for row in rows]


def columns(ledger: Mapping[str, Any]) -> list[Column]:
    """The columns worth showing: the main ones, and each other one that some row has a figure for."""
    metric = units.metric_name(text(ledger, "metric", "score"))
    split = text(ledger, "split", "test")
    found = [
        Column("score", _capital(metric), f"{metric} on the {split} split, with its interval", always=True),
        Column("retention", "Kept", f"the teacher's {metric} that is kept (retention)", always=True),
        *(
            Column(f"metric_{name}", _capital(units.metric_name(name)), f"{name} on the {split} split")
            for name in _other_metrics(ledger)
        ),
        Column("size", "Size", "weights and tokenizer on disk, in MB of 10⁶ bytes", always=True),
        Column("parameters", "Parameters", "number of weights", always=True),
        Column("p50", "Latency p50", "median time of one input, in the same runtime", always=True),
        Column("p95", "Latency p95", "19 of 20 inputs take less, in the same runtime"),
        Column("eager_p50", "Eager p50", "median time of one input in eager PyTorch"),
        Column("throughput", "Throughput", "inputs a second, in batches"),
        Column("ram", "RAM", "memory while predicting"),
        Column("start", "Start", "from the first import to the first answer, in a fresh process"),
        Column("training", "Training", "time to train"),
        Column("energy", "Energy", "energy to train"),
    ]
    rows = ledger_rows(ledger)
    return [c for c in found if c.always or any(row[c.key] != units.NOT_MEASURED for row in rows)]


def ledger_table(ledger: Mapping[str, Any]) -> Table:
    """The ledger for a terminal: models side by side, a figure a line, so that it fits 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = ledger_rows(ledger)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for row in rows:
        # rich reads [brackets] in a plain string as mark-up; a label is data.
        style = "bold" if row["kind"] == "pocket" else ""
        table.add_column(Text(_plain(row["label"]), style=style), justify="right", style=style)
    for column in columns(ledger):
        table.add_row(column.title, *(Text(_plain(row[column.key]), no_wrap=True) for row in rows))
        if column.key == "score" and any(row["interval"] for row in rows):
            table.add_row("  interval", *(Text(_plain(row["interval"]), no_wrap=True) for row in rows))
    return table


def markdown_table(ledger: Mapping[str, Any]) -> str:
    """The ledger as a Markdown table, a model a row, for model cards and READMEs."""
    shown = columns(ledger)
    lines = [
        "| Model | " + " | ".join(_markdown(column.title) for column in shown) + " |",
        "|---|" + "---:|" * len(shown),
    ]
    for row in ledger_rows(ledger):
        label = _markdown(row["label"])
        cells = [f"**{label}**" if row["kind"] == "pocket" else label]
        for column in shown:
            cell = row[column.key]
            if column.key == "score" and row["interval"]:
                cell += f" ({row['interval']})"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_ORDER = {"teacher": 0, "pocket": 1, "control": 2}


def _cells(row: Mapping[str, Any], metric: str, others: list[str]) -> dict[str, str]:
    other = section(row, "other_metrics")
    return {
        "name": text(row, "name", ""),
        "kind": text(row, "kind", ""),
        "label": units.shorten(str(row.get("label") or row.get("name") or "?"), LABEL_LIMIT),
        "score": units.score(row.get("score"), metric),
        "interval": units.interval(row.get("score_low"), row.get("score_high"), metric),
        "retention": units.percent(row.get("retention_pct")),
        "retention_interval": _percent_interval(row.get("retention_low"), row.get("retention_high")),
        **{f"metric_{name}": units.score(other.get(name), name) for name in others},
        "size": units.megabytes(row.get("size_bytes")),
        "parameters": units.parameters(row.get("parameters")),
        "p50": units.milliseconds(row.get("p50_ms")),
        "p95": units.milliseconds(row.get("p95_ms")),
        "eager_p50": units.milliseconds(row.get("eager_p50_ms")),
        "throughput": units.with_unit(row.get("throughput_per_s"), "/s"),
        "ram": units.megabytes(row.get("ram_bytes")),
        "start": units.milliseconds(row.get("start_ms")),
        "training": units.seconds(row.get("train_seconds")),
        "energy": units.with_unit(row.get("energy_wh"), "Wh", 2),
    }


def _percent_interval(low: Any, high: Any) -> str:
    ends = (units.measured(low), units.measured(high))
    if ends[0] is None or ends[1] is None:
        return ""
    return f"{units.fixed(ends[0], 1)}–{units.fixed(ends[1], 1)}"


def _other_metrics(ledger: Mapping[str, Any]) -> list[str]:
    found = {name: None for row in listed(ledger, "rows") for name in section(row, "other_metrics")}
    return [name for name in found if name != ledger.get("metric")]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(text: str) -> str:
    """Narrow spaces as plain ones (terminal fonts often lack them), control characters as `?`."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "?", text.replace(units.NARROW, " "))


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)

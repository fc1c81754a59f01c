"""`report.html`: one self-contained page from a pocket's own description; no script and no request.

The page is a function of `pocket.json` alone. Everything in it that came from the user (texts, labels,
names) is shortened, escaped and isolated from the writing direction around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pocketlm.report import confusion, svg, table, units, wording
from pocketlm.report.ledger import listed, section, text
from pocketlm.report.page import render_page, write_page
from pocketlm.report.units import shorten

MOST_NAMES = 20
SAID = {"regression": "value", "multilabel": "labels", "tokens": "spans", "joint": "meaning", "qa": "answer"}
"""What the right answer to an example is called."""
PICTURES = {"broad": (1136, 460), "middle": (680, 420), "slim": (340, 440)}


def render(pocket: Mapping[str, Any]) -> str:
    """The report of a pocket as one HTML page.

    Args:
        pocket: The parsed `pocket.json`. A figure that is null was not measured and is shown as a dash.

    Returns:
        The page: no script, no style sheet, font or image from elsewhere.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    return render_page("pocket.html", _page(pocket))


def write_report(pocket: Mapping[str, Any], path: Path) -> None:
    """Write the report aside, then rename: a reader sees the old page or the new one, never a half.

    Raises:
        MissingExtraError: jinja2 is not installed.
        StorageError: the disk is full, or the folder cannot be written.
    """
    write_page(render(pocket), path)


def _page(pocket: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows, section by section."""
    ledger = section(pocket, "ledger")
    task = section(pocket, "task")
    metric = text(ledger, "metric", "score")
    bill = section(ledger, "bill")
    return {
        "kind": "pocketlm report on",
        "name": shorten(text(pocket, "name", "unnamed"), wording.NAME_LIMIT),
        "when": _when(ledger.get("when")),
        "clauses": wording.headline(ledger),
        "standfirst": wording.standfirst(pocket),
        "verdicts": [shorten(str(verdict), 600) for verdict in listed(ledger, "verdicts")],
        "columns": table.columns(ledger),
        "rows": table.ledger_rows(ledger),
        "picture": _picture(ledger, metric),
        "curves": _curves(ledger, metric),
        "confused": _confused(ledger),
        "by_name": _by_name(ledger, str(task.get("kind"))),
        "said": SAID.get(str(task.get("kind")), "label"),
        "examples": confusion.examples(listed(ledger, "disagreements"), task.get("kind") != "regression"),
        "bill": wording.bill_lines(bill, bool(task.get("pair"))),
        "repaid": wording.repaid(bill),
        "bill_notes": _present([wording.lamp(bill.get("make_wh")), shorten(text(bill, "note", ""), 600)]),
        "definitions": wording.definitions(ledger, bool(task.get("pair"))),
        "machine": _machine(ledger),
        "origin": _origin(pocket),
        "recipe": text(pocket, "recipe", ""),
        "recipe_sha256": text(pocket, "recipe_sha256", ""),
        "history": [str(stage) for stage in listed(pocket, "history")],
        "files": [
            (
                shorten(name, 120),
                units.megabytes(file.get("size_bytes")),
                str(file.get("sha256") or units.NOT_MEASURED),
            )
            for name, file in sorted(section(pocket, "files").items())
        ],
    }


def _picture(ledger: Mapping[str, Any], metric: str) -> dict[str, Any]:
    from markupsafe import Markup  # comes with jinja2, and svg.py has escaped every text

    drawn = svg.points(ledger)
    missing = len(listed(ledger, "rows")) - len(drawn)
    sizes = PICTURES if drawn else {}
    return {
        "drawings": [
            (name, Markup(svg.size_score_picture(drawn, metric, *size))) for name, size in sizes.items()
        ],
        "missing": missing,
        "unclocked": any(point.p50_ms is None for point in drawn),
        "intervals": any(point.low is not None and point.high is not None for point in drawn),
    }


def _curves(ledger: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    from markupsafe import Markup

    curves: Sequence[Mapping[str, Any]] = listed(ledger, "curves")
    nothing: Mapping[str, Any] = {}
    rows: Mapping[Any, Mapping[str, Any]] = {row.get("name"): row for row in listed(ledger, "rows")}
    scores = [
        score
        for curve in curves
        for point in listed(curve, "points")
        if (score := units.measured(point.get("valid_score"))) is not None
    ]
    score_range = (min(scores), max(scores)) if scores else None
    found: list[dict[str, Any]] = []
    for curve in curves:
        row = rows.get(curve.get("name"), nothing)
        kind = row["kind"] if row.get("kind") in ("teacher", "pocket") else "control"
        drawing = svg.curve_picture(listed(curve, "points"), kind, metric, score_range)
        if drawing:
            label = shorten(str(row.get("label") or curve.get("name") or "?"), table.LABEL_LIMIT)
            found.append({"label": label, "kind": kind, "drawing": Markup(drawing)})
    return found


def _confused(ledger: Mapping[str, Any]) -> dict[str, Any] | None:
    counts = ledger.get("confusion")
    if not counts:
        return None
    pairs = confusion.confused_pairs(counts)
    return {
        "pairs": pairs,
        "most": max((n for pair in pairs for n in (pair.pocket, pair.teacher) if n is not None), default=0),
        "pocket_errors": confusion.errors(counts.get("pocket")),
        "teacher_errors": confusion.errors(counts.get("teacher")),
        "labels": len(listed(counts, "labels")),
        "total": units.count(ledger.get("examples")),
    }


def _by_name(ledger: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """F1 of each side for every type of span or label, the commonest first; None where there is none."""
    rows: Sequence[Mapping[str, Any]] = listed(ledger, "by_name")
    if not rows:
        return None
    return {
        "what": "Label" if kind == "multilabel" else "Slot" if kind == "joint" else "Span",
        "rows": [
            {
                "name": shorten(str(row.get("name")), confusion.LABEL_LIMIT),
                "of": units.count(row.get("of")),
                **{side: units.score(row.get(side), "f1") for side in ("pocket", "teacher")},
            }
            for row in rows[:MOST_NAMES]
        ],
    }


def _machine(ledger: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = section(ledger, "machine")
    cores, ram = units.measured(machine.get("cores")), units.measured(machine.get("ram_gb"))
    facts = [
        ("Processor", _known(machine.get("cpu"))),
        ("Cores", units.count(cores)),
        ("Memory", units.NOT_MEASURED if ram is None else units.with_unit(ram, "GB", 2)),
        ("System", _known(machine.get("os"))),
        ("Threads used", units.count(ledger.get("threads"))),
        ("Seed", units.count(ledger.get("seed"))),
    ]
    versions = [f"{name} {version}" for name, version in section(ledger, "versions").items()]
    return [*facts, ("Versions", shorten(", ".join(versions), 400) or units.NOT_MEASURED)]


def _origin(pocket: Mapping[str, Any]) -> list[tuple[str, str]]:
    task, shape = section(pocket, "task"), section(pocket, "shape")
    teacher, data = section(pocket, "teacher"), section(pocket, "data")
    named = [("labels", listed(task, "labels")), ("tags", listed(task, "tags"))]
    kind = f"{task.get('kind') or 'task unknown'} of {'text pairs' if task.get('pair') else 'single texts'}"
    for what, found in named:
        if found:
            names = [shorten(str(name), confusion.LABEL_LIMIT) for name in found[:12]]
            kind += f", {len(found)} {what}: {', '.join(names)}{', …' if len(found) > 12 else ''}"
    drawn = [
        f"{units.count(shape[key])} {name}"
        for key, name in (
            ("layers", "layers"),
            ("hidden_size", "wide"),
            ("intermediate_size", "wide inside"),
            ("heads", "heads"),
            ("vocabulary", "subwords"),
        )
        if units.measured(shape.get(key)) is not None
    ]
    if units.measured(pocket.get("max_length")) is not None:
        drawn.append(f"up to {units.count(pocket['max_length'])} tokens")
    rows = [f"{units.count(number)} {split}" for split, number in section(data, "rows").items()]
    dropped = [
        f"{units.count(number)} of {split} ({why.replace('_', ' ')})"
        for split, reasons in section(data, "dropped").items()
        for why, number in reasons.items()
        if number
    ]
    columns = [
        f"{role} from “{name}”"
        for role, names in section(data, "columns").items()
        for name in ([names] if isinstance(names, str) else names)
    ]
    origin = " · ".join(_present([_known(teacher.get("name"), ""), _known(teacher.get("source"), "")]))
    return [
        ("Task", kind),
        ("Teacher", origin or units.NOT_MEASURED),
        ("Its licence", _known(teacher.get("licence"), "not stated")),
        ("The pocket", ", ".join(drawn) or units.NOT_MEASURED),
        ("Data", _known(data.get("source"))),
        ("The data's licence", _known(data.get("licence"), "not stated")),
        ("Columns", shorten(", ".join(columns), 300) or units.NOT_MEASURED),
        ("Rows", ", ".join(rows) or units.NOT_MEASURED),
        ("Dropped", shorten(", ".join(dropped), 300) or "nothing"),
    ]


def _known(value: Any, otherwise: str = units.NOT_MEASURED) -> str:
    return shorten(str(value), 200) if value else otherwise


def _present(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if text]


def _when(value: Any) -> str:
    """The day of an ISO time, as people write it; what is no time is shown as it is."""
    if not isinstance(value, str) or not value:
        return ""
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return shorten(value, 40)
    return f"{when.day} {when:%B %Y}"

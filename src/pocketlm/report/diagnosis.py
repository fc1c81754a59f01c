"""What the doctor found, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pocketlm.report import units

SHOWN = 8


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print a `pocketlm.verbs.doctor.Diagnosis` as plain values: the findings last, where the eye is."""
    console.print(_layers(found))
    console.print(_products(found))
    console.print(_times(found))
    for side, score in found["scores"].items():
        console.print(
            f"{side}: " + ("not scored" if score is None else f"{score:.4f} on valid"), markup=False
        )
    findings: list[dict[str, Any]] = found["findings"]
    for finding in findings:
        style, word = ("red", "fault") if finding["fault"] else ("yellow", "note")
        console.print(f"{word}: {finding['text']}", style=style, markup=False)
        patch: dict[str, dict[str, Any]] = finding["patch"] or {}
        for stage, fields in patch.items():
            for name, value in fields.items():
                console.print(f"  --set {stage}.{name}={_yaml(value)}", markup=False, soft_wrap=True)
    if not findings:
        console.print("nothing is wrong that the doctor knows of", style="green")


def _layers(found: Mapping[str, Any]) -> Table:
    table = _table("layer", "most like the teacher's", "alignment (CKA)")
    for layer in found["layers"]:
        table.add_row(_layer(layer["layer"]), _layer(layer["teacher"]), f"{layer['cka']:.2f}")
    return table


def _products(found: Mapping[str, Any]) -> Table:
    errors = {one["of"]: one for one in found["maps"]}
    table = _table("8 bits cost most in", "of the logits", "its weights are off by", "codes at the end")
    for name, cost in found["costs"][:SHOWN]:
        one = errors.get(name)
        cells = (f"{one['error']:.1%}", f"{one['saturated']:.1%}") if one else (units.NOT_MEASURED,) * 2
        table.add_row(Text(name), f"{cost:.2%}", *cells)
    return table


def _times(found: Mapping[str, Any]) -> Table:
    times = found["times"]
    table = _table("a text takes", "")
    table.add_row("in all", units.milliseconds(times["text_ms"]))
    table.add_row("its tokenizer", units.milliseconds(times["tokenize_ms"]))
    table.add_row("in all, in float32", units.milliseconds(times["float_ms"]))
    for name, share in list(times["operators"].items())[:SHOWN]:
        table.add_row(Text(f"  {name}"), f"{share:.0%} of the graph")
    return table


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, title in enumerate(titles):
        table.add_column(title, justify="right" if place else "left")
    return table


def _layer(index: int) -> str:
    return "embeddings" if index == 0 else f"layer {index}"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)  # pyright: ignore[reportUnknownArgumentType]

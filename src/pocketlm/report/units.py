"""How figures are written: sensible digits, a narrow space before the unit, a dash for not measured."""

from __future__ import annotations

import math
from typing import Any

NARROW = "\u202f"
NOT_MEASURED = "–"
PERCENT_METRICS = frozenset(
    {
        *("accuracy", "f1", "macro_f1", "micro_f1", "precision", "recall", "subset_accuracy", "exact_match"),
        *("span_f1", "span_precision", "span_recall", "sentence_accuracy", "intent_accuracy"),
    }
)

_METRIC_NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "span_f1": "span F1",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "matthews": "Matthews correlation",
}


def measured(value: Any) -> float | None:
    """The finite number in `value`, or None: a null, a NaN and an infinity are all "not measured"."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def positive(value: Any) -> float | None:
    """Like `measured`, and None for what cannot be a size, a time or a ratio: zero and below."""
    number = measured(value)
    return number if number is not None and number > 0 else None


def fixed(number: float, decimals: int) -> str:
    """`12345.678, 1` is written `12 345.7`, with narrow spaces and a true minus sign."""
    text = f"{number:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    return text.replace(",", NARROW).replace("-", "\u2212")


def significant(number: float, digits: int = 3) -> str:
    """`digits` significant digits, but never rounds the integer part: 0.0423, 4.23, 42.3, 4 231."""
    if number == 0:
        return "0"
    rounded = float(f"{number:.{digits - 1}e}")
    return fixed(number, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))))


def with_unit(value: Any, unit: str, digits: int = 3) -> str:
    """A measured figure with its unit, or the dash."""
    number = measured(value)
    return NOT_MEASURED if number is None else f"{significant(number, digits)}{NARROW}{unit}"


def count(value: Any) -> str:
    """A whole number with grouped thousands, or the dash."""
    number = measured(value)
    return NOT_MEASURED if number is None else fixed(number, 0)


def megabytes(value: Any) -> str:
    """Bytes in MB of 10^6 bytes."""
    number = measured(value)
    return NOT_MEASURED if number is None else with_unit(number / 1e6, "MB")


def parameters(value: Any) -> str:
    """A parameter count: `512`, `20.5 k`, `22.7 M`, `1.34 B`."""
    number = measured(value)
    if number is None:
        return NOT_MEASURED
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= scale:
            return with_unit(number / scale, unit)
    return fixed(number, 0)


def milliseconds(value: Any) -> str:
    """A latency: `0.31 ms`, `4.72 ms`, `1 231 ms`."""
    number = measured(value)
    return NOT_MEASURED if number is None else with_unit(number, "ms", 3 if abs(number) >= 1 else 2)


def seconds(value: Any) -> str:
    """A duration as people say it: `0.42 s`, `38 s`, `4 min 12 s`, `1 h 12 min`."""
    number = measured(value)
    if number is None:
        return NOT_MEASURED
    if number < 10:
        return with_unit(number, "s", 2)
    whole = round(number)
    if whole < 60:
        return f"{whole}{NARROW}s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes}{NARROW}min" + (f" {rest}{NARROW}s" if rest else "")
    hours, rest = divmod(round(whole / 60), 60)
    return f"{fixed(hours, 0)}{NARROW}h" + (f" {rest}{NARROW}min" if rest else "")


def watt_hours(value: Any) -> str:
    """Energy with the prefix that keeps it readable: `21.4 µWh`, `3.20 mWh`, `1.73 Wh`, `2.40 kWh`."""
    number = measured(value)
    if number is None or number == 0:
        return with_unit(number, "Wh")
    for scale, unit in ((1e3, "kWh"), (1.0, "Wh"), (1e-3, "mWh")):
        if abs(number) >= scale:
            return with_unit(number / scale, unit)
    return with_unit(number / 1e-6, "µWh")


def percent(value: Any) -> str:
    """A percentage with one decimal; the value is already in percent."""
    number = measured(value)
    return NOT_MEASURED if number is None else f"{fixed(number, 1)}{NARROW}%"


def metric_name(metric: str) -> str:
    """The metric in words: `macro_f1` is "macro F1"."""
    return _METRIC_NAMES.get(metric, metric.replace("_", " "))


def score(value: Any, metric: str) -> str:
    """A score of `metric`: shares of right answers in percent, correlations with three decimals."""
    number = measured(value)
    if number is None:
        return NOT_MEASURED
    return percent(number * 100) if metric in PERCENT_METRICS else fixed(number, 3)


def interval(low: Any, high: Any, metric: str) -> str:
    """The two ends of a score's interval, without a unit: `80.1–84.3`; empty where one is missing."""
    ends = (measured(low), measured(high))
    if ends[0] is None or ends[1] is None:
        return ""
    scale, decimals = (100, 1) if metric in PERCENT_METRICS else (1, 3)
    return "–".join(fixed(end * scale, decimals) for end in ends if end is not None)


def times(ratio: float) -> str:
    """A ratio: `1.2×`, `11×`, `134×`."""
    return f"{significant(ratio, 2)}×"


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters on one line; where cut, between words if it can be, and marked with `…`."""
    head = text[: limit * 8]
    line = " ".join(head.split())
    if len(line) <= limit and len(head) == len(text):
        return line
    cut = line[: limit - 1]
    space = cut.rfind(" ")
    if space > limit * 2 // 3:
        cut = cut[:space]
    # A joiner or variation selector left at the end would bind to the ellipsis.
    return cut.rstrip(" \u200d\ufe0e\ufe0f") + "…"

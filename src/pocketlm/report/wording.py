"""What the report says in words: headline, standfirst, bill. Worse is said as plainly as better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketlm.report import units
from pocketlm.report.ledger import first_row, section, text

NAME_LIMIT = 80
METHODS = {
    "rapl": "RAPL: read from the processor's own counters.",
    "tdp": "Estimated from TDP, the processor's rated power; not metered.",
    "none": "Not measured.",
}


@dataclass(frozen=True)
class Clause:
    """One claim of the headline: a figure, which may be empty, and its words."""

    figure: str
    words: str

    def __str__(self) -> str:
        """The clause as text."""
        return f"{self.figure} {self.words}".strip()


def headline(ledger: Mapping[str, Any]) -> list[Clause]:
    """Smaller, faster, kept, each left out where it was not measured.

    Args:
        ledger: The `ledger` of a parsed `pocket.json`.

    Returns:
        Clauses such as "11× smaller", "1.2× slower", "97.8 % of the accuracy kept".
    """
    ratios = section(ledger, "ratios")
    found: list[Clause] = []
    smaller = units.positive(ratios.get("smaller_x"))
    if smaller is not None:
        found.append(comparison(smaller, "smaller", "bigger", "as big"))
    faster = speed(ratios.get("faster_x"))
    if faster is not None:
        found.append(faster)
    retention = units.measured(first_row(ledger, "pocket").get("retention_pct"))
    if retention is not None:
        metric = units.metric_name(text(ledger, "metric", "score"))
        found.append(Clause(units.percent(retention), f"of the {metric} kept"))
    return found


def comparison(ratio: float, better: str, worse: str, same: str) -> Clause:
    """A ratio in words, its figure never below one.

    Example:
        >>> str(comparison(0.8, "faster", "slower", "as fast"))
        '1.2× slower'
    """
    if units.times(ratio) == units.times(1) or units.times(1 / ratio) == units.times(1):
        return Clause("", f"about {same}")
    return Clause(units.times(ratio), better) if ratio > 1 else Clause(units.times(1 / ratio), worse)


def speed(ratio: Mapping[str, Any] | None) -> Clause | None:
    """A measured speed ratio in words; "about as fast" where its spread lies on both sides of one."""
    if ratio is None or (median := units.positive(ratio.get("median"))) is None:
        return None
    low, high = units.positive(ratio.get("low")), units.positive(ratio.get("high"))
    if low is not None and high is not None and low < 1 < high:
        return Clause("", "about as fast")
    return comparison(median, "faster", "slower", "as fast")


def spread(ratio: Mapping[str, Any] | None) -> str:
    """A measured ratio with its spread: `2.6× (2.4–2.8)`, or "not measured"."""
    if ratio is None or (median := units.positive(ratio.get("median"))) is None:
        return "not measured"
    low, high = units.positive(ratio.get("low")), units.positive(ratio.get("high"))
    if low is None or high is None:
        return f"{units.significant(median, 2)}×"
    return f"{units.significant(median, 2)}× ({units.significant(low, 2)}–{units.significant(high, 2)})"


def standfirst(pocket: Mapping[str, Any]) -> list[str]:
    """The figures behind the headline, a sentence each; one that was not measured is left out."""
    ledger = section(pocket, "ledger")
    teacher, small = first_row(ledger, "teacher"), first_row(ledger, "pocket")
    one = "pair of texts" if section(pocket, "task").get("pair") else "text"
    metric = text(ledger, "metric", "score")
    found: list[str] = []
    if _both(teacher, small, "size_bytes"):
        ours, theirs = (units.megabytes(row["size_bytes"]) for row in (small, teacher))
        found.append(f"{ours} on disk instead of {theirs}.")
    if _both(teacher, small, "p50_ms"):
        ours, theirs = (units.milliseconds(row["p50_ms"]) for row in (small, teacher))
        found.append(f"A {one} takes {ours} instead of {theirs} in the same runtime on this machine.")
    if _both(teacher, small, "score"):
        ours, theirs = (units.score(row["score"], metric) for row in (small, teacher))
        examples = units.measured(ledger.get("examples"))
        on = (
            ""
            if examples is None
            else f" on {units.count(examples)} {ledger.get('split') or 'test'} examples"
        )
        name = units.metric_name(metric)
        found.append(f"{name[:1].upper()}{name[1:]} is {ours} instead of {theirs}{on}.")
    return found


def repaid(bill: Mapping[str, Any]) -> tuple[str, str]:
    """The last line of the bill: what it is about, and the answer."""
    requests = units.measured(bill.get("repaid_after_requests"))
    if requests is not None:
        return "Repaid after", f"{units.count(requests)} requests"
    teacher, pocket = (
        units.positive(bill.get("request_wh_teacher")),
        units.positive(bill.get("request_wh_pocket")),
    )
    if teacher is not None and pocket is not None and pocket >= teacher:
        return "Repaid after", "never: a request costs no less than the teacher's"
    return "Repaid after", units.NOT_MEASURED


def bill_lines(bill: Mapping[str, Any], pair: bool) -> list[tuple[str, list[tuple[str, str]]]]:
    """The bill as groups of (item, amount): making the pocket, then running it."""
    country = bill.get("country")
    where = f", grid: {units.shorten(str(country), 40)}" if country else ""
    gco2 = units.measured(bill.get("make_gco2"))
    thousand = "1" + units.NARROW + "000 " + ("pairs" if pair else "texts")
    return [
        (
            "To make it, once",
            [
                ("Time", units.seconds(bill.get("make_seconds"))),
                ("Energy", units.watt_hours(bill.get("make_wh"))),
                (f"CO₂{where}", units.NOT_MEASURED if gco2 is None else units.with_unit(gco2, "g")),
            ],
        ),
        (
            f"To run it, per {thousand}",
            [
                ("The teacher", _thousandfold(bill.get("request_wh_teacher"))),
                ("The pocket", _thousandfold(bill.get("request_wh_pocket"))),
            ],
        ),
    ]


def definitions(ledger: Mapping[str, Any], pair: bool) -> list[tuple[str, str]]:
    """What each claim means and how it was measured, as (term, sentences)."""
    metric, split = units.metric_name(text(ledger, "metric", "score")), text(ledger, "split", "test")
    ratios, method = section(ledger, "ratios"), text(section(ledger, "bill"), "energy_method", "none")
    number, tokens = units.measured(ledger.get("examples")), units.measured(ledger.get("tokens_p50"))
    examples = "examples" if number is None else f"{units.count(number)} examples"
    length = "" if tokens is None else f", of {units.count(tokens)} tokens in the median"
    shrunk = [
        f"{what} {units.significant(ratio)}×."
        for what, key in (("Teacher ÷ pocket:", "smaller_x"), ("Parameters alone:", "fewer_parameters_x"))
        if (ratio := units.positive(ratios.get(key))) is not None
    ]
    return [
        ("Kept", f"The pocket's {metric} ÷ the teacher's, on the same {examples} of the {split} split."),
        (
            "Interval",
            "95 % of a percentile bootstrap: where the figure lies when the examples are drawn again.",
        ),
        (
            "Smaller",
            " ".join(
                [
                    "Bytes of what ships, weights and tokenizer,",
                    "against the teacher's safetensors and tokenizer.",
                    *shrunk,
                ]
            ),
        ),
        (
            "Faster",
            f"Median time of one {'pair' if pair else 'text'} at a time, on real inputs of the {split} split"
            f"{length}; teacher and pocket in turns. Teacher ÷ pocket in the same runtime (ONNX Runtime, "
            f"teacher in fp32): {spread(ratios.get('faster_x'))}. "
            f"Against the teacher in eager PyTorch: {spread(ratios.get('faster_x_eager_torch'))}.",
        ),
        ("Energy", METHODS.get(method, method)),
        ("A dash", "Not measured."),
    ]


def lamp(make_wh: Any) -> str:
    """What the energy would do elsewhere: how long it lights a 10 W lamp. Empty where not measured."""
    energy = units.positive(make_wh)
    return (
        ""
        if energy is None
        else f"A 10{units.NARROW}W lamp burns {units.seconds(energy * 360)} on the energy of making it."
    )


def _both(teacher: Mapping[str, Any], small: Mapping[str, Any], key: str) -> bool:
    return units.measured(teacher.get(key)) is not None and units.measured(small.get(key)) is not None


def _thousandfold(request_wh: Any) -> str:
    energy = units.measured(request_wh)
    return units.NOT_MEASURED if energy is None else units.watt_hours(energy * 1000)

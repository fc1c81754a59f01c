"""The report's pictures, as pure functions from figures to inline SVG; colours are the page's CSS classes.

Text keeps its size only where a picture is shown near its own width, so each function takes a width
and the page asks for a wide and a narrow one.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketlm.report import marks, units
from pocketlm.report.labels import Anchor, Box, Placed, place, text_width
from pocketlm.report.ledger import listed
from pocketlm.report.scales import nice_ticks, padded, scale, size_ticks, spread

LINE = 15.0
TEXT_SIZE = 12.5
MOST_CURVE_POINTS = 240


@dataclass(frozen=True)
class Point:
    """One model in the size-score picture: only a model with both is one."""

    label: str
    kind: str
    size_bytes: float
    score: float
    low: float | None
    high: float | None
    p50_ms: float | None


def points(ledger: Mapping[str, Any]) -> list[Point]:
    """The rows of a ledger that have a size and a score."""
    found: list[Point] = []
    for row in listed(ledger, "rows"):
        size, score = units.positive(row.get("size_bytes")), units.measured(row.get("score"))
        if size is None or score is None:
            continue
        low, high = units.measured(row.get("score_low")), units.measured(row.get("score_high"))
        found.append(
            Point(
                label=str(row.get("label") or row.get("name") or "?"),
                kind=row["kind"] if row.get("kind") in ("teacher", "pocket") else "control",
                size_bytes=size,
                score=score,
                low=None if low is None else min(low, score),
                high=None if high is None else max(high, score),
                p50_ms=units.positive(row.get("p50_ms")),
            )
        )
    return found


def size_score_picture(models: Sequence[Point], metric: str, width: int, height: int) -> str:
    """Size on a logarithmic axis against score, error bars, circle area for latency, every circle labelled.

    Args:
        models: What to draw; at least one.
        metric: Name of the score, for its format.
        width: Width in CSS pixels.
        height: Least height in CSS pixels; the picture grows until its labels have room.

    Returns:
        An `<svg>` element.
    """
    while True:
        drawing = _Drawing(models, metric, width, height)
        placed = place(drawing.anchors(), drawing.label_frame, drawing.obstacles())
        if placed is not None:
            return drawing.svg(placed)
        height += 60


class _Drawing:
    """The scales of one size-score picture and what is drawn with them."""

    def __init__(self, models: Sequence[Point], metric: str, width: int, height: int) -> None:
        self.models, self.metric, self.width, self.height = models, metric, width, height
        self.largest = 26.0 if width >= 600 else 17.0
        self.frame = Box(52, 26, width - 8, height - 44)
        margin = self.largest + 6
        self.label_frame = Box(
            self.frame.left + 4, self.frame.top + 20, self.frame.right, self.frame.bottom - 4
        )
        sizes = [math.log10(model.size_bytes) for model in models]
        self.size_low, self.size_high = padded(min(sizes), max(sizes), 0.1)
        scores = [end for m in models for end in (m.score, m.low, m.high) if end is not None]
        self.score_low, self.score_high = padded(min(scores), max(scores), 0.02)
        self.x_range = (self.frame.left + margin, self.frame.right - margin)
        self.y_range = (self.frame.bottom - margin, self.frame.top + margin + 14)
        self.places = spread([self.x_of(model.size_bytes) for model in models])
        self.slowest = max((m.p50_ms for m in models if m.p50_ms is not None), default=1.0)

    def x(self, model: Point) -> float:
        """Where the model stands; models of one size stand side by side, so that all error bars show."""
        return self.places[self.models.index(model)]

    def x_of(self, size_bytes: float) -> float:
        return scale(math.log10(size_bytes), self.size_low, self.size_high, *self.x_range)

    def y(self, score: float) -> float:
        return scale(score, self.score_low, self.score_high, *self.y_range)

    def radius(self, model: Point) -> float:
        """Area in proportion to latency, and never too small to be seen."""
        return (
            4.0 if model.p50_ms is None else max(3.0, self.largest * math.sqrt(model.p50_ms / self.slowest))
        )

    def label(self, model: Point) -> tuple[list[str], str]:
        """The model's name in at most two lines, and the line of its figures."""
        characters = 36 if self.width >= 600 else 18
        name = units.shorten(model.label, 2 * characters) or "?"
        figures = units.megabytes(model.size_bytes)
        if model.p50_ms is not None:
            figures += f" · {units.milliseconds(model.p50_ms)}"
        return textwrap.wrap(name, characters, max_lines=2, placeholder="…", break_on_hyphens=False), figures

    def anchors(self) -> list[Anchor]:
        found: list[Anchor] = []
        for model in self.models:
            # The bold label of the pocket is wider.
            lines, figures = self.label(model)
            name = max(text_width(line, TEXT_SIZE) for line in lines) * (
                1.08 if model.kind == "pocket" else 1
            )
            wide, high = max(name, text_width(figures, TEXT_SIZE)), LINE * (len(lines) + 1) + 2
            found.append(Anchor(self.x(model), self.y(model.score), self.radius(model), wide, high))
        return found

    def obstacles(self) -> list[Box]:
        """Error bars, and the thread from teacher to pocket cut into small squares."""
        found = [
            Box(x - 5, self.y(high), x + 5, self.y(low))
            for model in self.models
            for x, low, high in [(self.x(model), model.low, model.high)]
            if low is not None and high is not None
        ]
        for start, end in self.threads():
            steps = max(1, int(math.dist(start, end) // 16))
            for step in range(steps + 1):
                x = start[0] + (end[0] - start[0]) * step / steps
                y = start[1] + (end[1] - start[1]) * step / steps
                found.append(Box(x - 6, y - 6, x + 6, y + 6))
        return found

    def threads(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """Lines from the teacher to each pocket, from rim to rim."""
        found: list[tuple[tuple[float, float], tuple[float, float]]] = []
        for teacher in (m for m in self.models if m.kind == "teacher"):
            for pocket in (m for m in self.models if m.kind == "pocket"):
                start = (self.x(teacher), self.y(teacher.score))
                end = (self.x(pocket), self.y(pocket.score))
                away, towards, apart = (
                    self.radius(teacher) + 3,
                    self.radius(pocket) + 3,
                    math.dist(start, end),
                )
                if apart <= away + towards:
                    continue
                across, down = (end[0] - start[0]) / apart, (end[1] - start[1]) / apart
                rim = (start[0] + across * away, start[1] + down * away)
                found.append((rim, (end[0] - across * towards, end[1] - down * towards)))
        return found

    def svg(self, placed: Sequence[Placed]) -> str:
        name = units.metric_name(self.metric)
        told = "; ".join(_told(model, self.metric) for model in self.models)
        parts = [
            marks.opened(self.width, self.height, f"Size against {name}. {told}"),
            *self._axes(name),
            *(marks.line("thread", *start, *end) for start, end in self.threads()),
        ]
        for model, where in sorted(
            zip(self.models, placed, strict=True), key=lambda pair: -self.radius(pair[0])
        ):
            parts += self._model(model, where)
        return "".join([*parts, "</svg>"])

    def _axes(self, name: str) -> list[str]:
        frame = self.frame
        parts = [
            marks.text("axis-name", frame.left - 44, 13, "start", f"↑ {name}"),
            marks.text("axis-name", frame.right, self.height - 5, "end", "size on disk, logarithmic →"),
            marks.text("better", frame.left + 6, frame.top + 14, "start", "↖ smaller and better"),
            marks.line("rule", frame.left, frame.bottom, frame.right, frame.bottom),
        ]
        ticks = [t for t in nice_ticks(*self._inverse_scores()) if frame.top <= self.y(t) <= frame.bottom - 8]
        decimals = (
            max(0, -math.floor(math.log10(ticks[1] - ticks[0])) - (2 if self._percent else 0))
            if ticks[1:]
            else 1
        )
        for tick in ticks:
            y = self.y(tick)
            written = (
                f"{units.fixed(tick * 100, decimals)}{units.NARROW}%"
                if self._percent
                else f"{units.fixed(tick, decimals)}"
            )
            parts += [
                marks.line("grid", frame.left, y, frame.right, y),
                marks.text("tick", frame.left - 7, y + 4, "end", written),
            ]
        last = -math.inf
        for tick in size_ticks(*self._inverse_sizes()):
            x, written = self.x_of(tick), units.with_unit(tick / 1e6, "MB", 1)
            half = text_width(written, 11.5) / 2
            if x - half < max(last, frame.left) or x + half > frame.right:
                continue
            last = x + half + 6
            parts += [
                marks.line("rule", x, frame.bottom, x, frame.bottom + 4),
                marks.text("tick", x, frame.bottom + 18, "middle", written),
            ]
        return parts

    @property
    def _percent(self) -> bool:
        return self.metric in units.PERCENT_METRICS

    def _inverse_scores(self) -> tuple[float, float]:
        return (
            scale(self.frame.bottom, *self.y_range, self.score_low, self.score_high),
            scale(self.frame.top, *self.y_range, self.score_low, self.score_high),
        )

    def _inverse_sizes(self) -> tuple[float, float]:
        return (
            scale(self.frame.left, *self.x_range, self.size_low, self.size_high),
            scale(self.frame.right, *self.x_range, self.size_low, self.size_high),
        )

    def _model(self, model: Point, where: Placed) -> list[str]:
        x, y, radius = self.x(model), self.y(model.score), self.radius(model)
        kind = model.kind + ("" if model.p50_ms is not None else " unclocked")
        parts = [f'<g class="{kind}"><title>{marks.safe(_told(model, self.metric))}</title>']
        parts.append(f'<circle class="disc" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>')
        if model.low is not None and model.high is not None:
            low, high = self.y(model.low), self.y(model.high)
            parts.append(f'<path class="bar" d="M{x - 4:.1f} {high:.1f}h8m-4 0V{low:.1f}m-4 0h8"/>')
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>')
        near = where.box.nearest(x, y)
        apart = math.dist(near, (x, y))
        if apart > radius + 14:
            rim = (x + (near[0] - x) * radius / apart, y + (near[1] - y) * radius / apart)
            parts.append(marks.line("leader", *rim, *near))
        box = where.box
        flush = {"start": box.left, "middle": (box.left + box.right) / 2, "end": box.right}[where.align]
        lines, figures = self.label(model)
        for number, line in enumerate(lines, start=1):
            parts.append(marks.text("label", flush, box.top + number * LINE - 3, where.align, line))
        parts.append(
            marks.text("figures", flush, box.top + (len(lines) + 1) * LINE - 3, where.align, figures)
        )
        parts.append("</g>")
        return parts


def curve_picture(
    steps: Sequence[Mapping[str, Any]],
    kind: str,
    metric: str,
    score_range: tuple[float, float] | None,
    width: int = 340,
    height: int = 196,
) -> str:
    """How one model learned: its valid score above, its train loss below, on the same steps.

    Args:
        steps: Points with `step`, `train_loss` and `valid_score`; either of the two may be null.
        kind: `teacher`, `pocket` or `control`, for the colour.
        metric: Name of the valid score.
        score_range: Lowest and highest valid score over all models, so that the multiples compare.
        width: Width in CSS pixels.
        height: Height in CSS pixels.

    Returns:
        An `<svg>` element, or an empty string where there is nothing to draw.
    """
    scores, losses = _series(steps, "valid_score"), _series(steps, "train_loss")
    if not scores and not losses:
        return ""
    last = max(step for step, _ in scores + losses)
    left, right, name = 6.0, width - 6.0, units.metric_name(metric)
    middle = height * 0.56
    parts = [marks.opened(width, height, f"Valid {name} and train loss over {units.count(last)} steps")]
    if scores:
        low, high = padded(*(score_range or (min(v for _, v in scores), max(v for _, v in scores))), 0.01)
        path = [(scale(s, 0, last, left, right), scale(v, low, high, middle - 12, 40)) for s, v in scores]
        best = max(range(len(scores)), key=lambda index: scores[index][1])
        written = units.score(scores[best][1], metric)
        half = text_width(written, TEXT_SIZE) / 2
        x = min(max(path[best][0], left + half), right - half)
        parts += [
            marks.text("axis-name", left, 12, "start", f"valid {name}"),
            marks.polyline(f"{kind} score", path),
            *(f'<circle class="{kind} mark" cx="{a:.1f}" cy="{b:.1f}" r="1.8"/>' for a, b in path),
            f'<circle class="{kind} best" cx="{path[best][0]:.1f}" cy="{path[best][1]:.1f}" r="4"><title>'
            f"best: {marks.safe(written)} at step {units.count(scores[best][0])}</title></circle>",
            marks.text("label", x, path[best][1] - 9, "middle", written),
        ]
    if losses:
        top = max(value for _, value in losses)
        low, high = padded(min(0.0, min(v for _, v in losses)), top, 0.01)
        bottom = height - 20.0
        path = [(scale(s, 0, last, left, right), scale(v, low, high, bottom, middle + 22)) for s, v in losses]
        ends = f"{units.significant(losses[0][1], 2)} → {units.significant(losses[-1][1], 2)}"
        parts += [
            marks.text("axis-name", left, middle + 12, "start", "train loss"),
            marks.text("axis-name", right, middle + 12, "end", ends),
            marks.polyline("loss", path),
        ]
    parts += [
        marks.line("rule", left, height - 20, right, height - 20),
        marks.text("tick", left, height - 5, "start", "0"),
        marks.text("tick", right, height - 5, "end", f"{units.count(last)} steps"),
        "</svg>",
    ]
    return "".join(parts)


def _series(steps: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """The measured (step, value) pairs, thinned evenly with both ends kept."""
    found = [
        (step, value)
        for point in steps
        if (step := units.measured(point.get("step"))) is not None and step >= 0
        if (value := units.measured(point.get(key))) is not None
    ]
    if len(found) <= MOST_CURVE_POINTS:
        return found
    stride = (len(found) - 1) / (MOST_CURVE_POINTS - 1)
    return [found[round(index * stride)] for index in range(MOST_CURVE_POINTS)]


def _told(model: Point, metric: str) -> str:
    """A model in words, for the tooltip and for who cannot see the picture."""
    ends = units.interval(model.low, model.high, metric)
    parts = [
        units.score(model.score, metric) + (f" ({ends})" if ends else ""),
        units.megabytes(model.size_bytes),
    ]
    parts.append("latency not measured" if model.p50_ms is None else units.milliseconds(model.p50_ms))
    return f"{units.shorten(model.label, 80)}: {', '.join(parts)}"

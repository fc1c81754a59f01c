"""The marks that pictures are made of: SVG elements as text; colours are the page's CSS classes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pocketlm.report.labels import Align


def safe(text: str) -> str:
    """Escaped, and isolated from the direction of its neighbours by U+2068 and U+2069."""
    return f"\u2068{escape(text)}\u2069"


def opened(width: int, height: int, told: str) -> str:
    """The start of a picture, and what it says to who cannot see it."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size} role="img" aria-label="{safe(told)}">'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def polyline(kind: str, path: Sequence[tuple[float, float]]) -> str:
    """A line through points."""
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in path)}"/>'


def text(kind: str, x: float, y: float, align: Align, told: str) -> str:
    """Words that stand at, before or around a point."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{align}">{safe(told)}</text>'


def band(lower: Sequence[tuple[float, float]], upper: Sequence[tuple[float, float]]) -> str:
    """The area between two lines through points of the same abscissas."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*lower, *reversed(upper)))
    return f'<polygon class="band" points="{path}"/>'


def dot(kind: str, x: float, y: float, radius: float, told: str) -> str:
    """A filled circle with a tooltip."""
    circle = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
    return f"{circle}<title>{safe(told)}</title></circle>"

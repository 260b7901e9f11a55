"""Line charts as SVG text for a page: no library, no script, and the letters are the browser's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 16, 46
_FEW = 40  # up to so many points each gets a dot


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: for the legend.
        points: (x, y) in the order of x; what is not finite is left out.
    """

    name: str
    points: list[tuple[float, float]]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """An ``<svg>`` element with axes and a legend; "" where there is nothing to draw. Colours come from the classes
    ``line-0``, ``line-1``, …, ``grid`` and the text colour of the page."""
    drawn = [Series(line.name, [(x, y) for x, y in line.points if math.isfinite(x + y)]) for line in series]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    xs, ys = zip(*[point for line in drawn for point in line.points], strict=True)
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    place = _Place(min(xs), max(xs), y_ticks[0], y_ticks[-1])
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{y_label} over {x_label}", quote=True)}">'
    ]
    for value in y_ticks:
        y = place.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in x_ticks:
        if place.left <= value <= place.right:
            x, y = place.x(value), HEIGHT - _BOTTOM + 18
            parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{_number(value)}</text>')
    parts += [_drawn(line, number, place) for number, line in enumerate(drawn)]
    middle, bottom = (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8
    parts.append(f'<text class="label" x="{middle}" y="{bottom}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text class="label" transform="translate(14 {(_TOP + HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text></svg>'
    )
    return "\n".join(parts) + _legend(drawn)


@dataclass(frozen=True)
class _Place:
    """From values to places in the picture."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.left) / ((self.right - self.left) or 1) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.low) / ((self.high - self.low) or 1) * (HEIGHT - _TOP - _BOTTOM)


def _drawn(line: Series, number: int, place: _Place) -> str:
    points = [f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in line.points]
    dots = ""
    if len(points) <= _FEW:
        dots = "".join(
            f'<circle class="dot-{number}" cx="{point.split(",")[0]}" cy="{point.split(",")[1]}" r="2.6">'
            f"<title>{escape(line.name)}: {x:g}, {y:.4g}</title></circle>"
            for point, (x, y) in zip(points, line.points, strict=True)
        )
    return f'<polyline class="line line-{number}" points="{" ".join(points)}"/>{dots}'


def _legend(lines: Sequence[Series]) -> str:
    entries = "".join(
        f'<span><i class="key-{number}"></i>{escape(line.name)}</span>' for number, line in enumerate(lines)
    )
    return f'\n<p class="legend">{entries}</p>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values that span low to high: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u2009") if abs(value) >= 1000 else f"{value:g}"

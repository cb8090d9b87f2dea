"""Line charts as SVG: text that any browser, notebook and code forge shows, made without any other package."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_INK, _GREY, _GRID = "#24292f", "#6e7781", "#e7e9ec"


@dataclass(frozen=True)
class Line:
    """A curve: points in the order of x. Those that are not finite are gaps."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    """Show every point."""


@dataclass(frozen=True)
class Panel:
    """A chart with one axis for its lines."""

    title: str
    lines: Sequence[Line]


class Chart:
    """A picture as SVG text, shown by notebooks as it is."""

    def __init__(self, svg: str) -> None:
        self.svg = svg

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the picture to a file."""
        with open(path, "w", encoding="utf-8") as f:
            f.write(self.svg)

    def _repr_svg_(self) -> str:
        return self.svg

    def __str__(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"<Chart: {len(self.svg)} bytes of SVG>"


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: means of neighbours."""
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(points) <= most:
        return points
    out = []
    for i in range(most):
        part = points[i * len(points) // most : (i + 1) * len(points) // most]
        out.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return out


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within a range, about so many."""
    step = (high - low) / max(about, 1)
    if not step > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(step))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(v: float) -> str:
    """A label of an axis."""
    if v == 0:
        return "0"
    if 1e-3 <= abs(v) < 1e5:
        return f"{v:.4g}"
    mantissa, _, exponent = f"{v:.2g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else f"{v:.0f}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    return low, high


def _panel(panel: Panel, x0: float, y0: float, w: float, h: float) -> list[str]:
    """A panel whose field, without labels, is at x0, y0 and w wide and h high."""
    title = f'x="{x0:.1f}" y="{y0 - 12:.1f}" font-size="13" font-weight="600" fill="{_INK}"'
    out = [f"<text {title}>{escape(panel.title)}</text>"]
    lines = [(line, thin(line.points, 400)) for line in panel.lines]
    lines = [(line, points) for line, points in lines if points]
    if not lines:
        middle = f'x="{x0 + w / 2:.1f}" y="{y0 + h / 2:.1f}" text-anchor="middle"'
        return [*out, f'<text {middle} font-size="12" fill="{_GREY}">no data</text>']
    left, right = _range([x for _, points in lines for x, _ in points])
    low, high = _range([y for _, points in lines for _, y in points])
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)

    def at(x: float, y: float) -> tuple[float, float]:
        return x0 + (x - left) / (right - left) * w, y0 + h - (y - low) / (high - low) * h

    for t in ticks(low, high, 4):
        y = at(left, t)[1]
        out.append(f'<line x1="{x0:.1f}" x2="{x0 + w:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}"/>')
        label = f'x="{x0 - 6:.1f}" y="{y + 4:.1f}" text-anchor="end" font-size="11" fill="{_GREY}"'
        out.append(f"<text {label}>{number(t)}</text>")
    for t in ticks(left, right, 5):
        x = at(t, low)[0]
        label = f'x="{x:.1f}" y="{y0 + h + 15:.1f}" text-anchor="middle" font-size="11" fill="{_GREY}"'
        out.append(f"<text {label}>{number(t)}</text>")
    out.append(f'<line x1="{x0:.1f}" x2="{x0 + w:.1f}" y1="{y0 + h:.1f}" y2="{y0 + h:.1f}" stroke="{_GREY}"/>')
    legend = x0 + w
    for line, points in lines:
        places = [at(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        if len(places) > 1:
            style = f'fill="none" stroke="{line.colour}" stroke-width="1.6" stroke-linejoin="round"'
            out.append(f'<polyline points="{path}" {style}/>')
        if line.dots or len(places) == 1:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{line.colour}"/>' for x, y in places]
    if len(lines) > 1:
        for line, _ in reversed(lines):
            where = f'x="{legend:.1f}" y="{y0 - 12:.1f}" text-anchor="end" font-size="11" fill="{line.colour}"'
            out.append(f"<text {where}>{escape(line.label)}</text>")
            legend -= 7 * len(line.label) + 12
    return out


def chart(panels: Sequence[Panel], width: int = 860, columns: int = 2) -> Chart:
    """Panels in rows."""
    left, top, below, gap = 52, 44, 30, 18  # room for labels and titles
    rows = -(-len(panels) // columns)
    cell, high = (width - 8) / columns, 150
    height = rows * (top + high + below)
    family = "system-ui,-apple-system,Segoe UI,Roboto,DejaVu Sans,sans-serif"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{family}" style="max-width:100%;height:auto">',
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
    ]
    for i, panel in enumerate(panels):
        x = (i % columns) * cell + left
        y = (i // columns) * (top + high + below) + top
        out += _panel(panel, x, y, cell - left - gap, high)
    return Chart("\n".join([*out, "</svg>"]))


def sparkline(values: Sequence[float], width: int = 220, height: int = 36) -> str:
    """A small curve without axes, as SVG within HTML."""
    points = thin(list(enumerate(values)), width // 2)
    if len(points) < 2:
        return ""
    low, high = _range([y for _, y in points])
    last = points[-1][0] or 1
    path = " ".join(
        f"{2 + x / last * (width - 6):.1f},{height - 3 - (y - low) / (high - low) * (height - 6):.1f}"
        for x, y in points
    )
    end = path.rsplit(" ", 1)[-1].split(",")
    return (
        f'<svg width="{width}" height="{height}" style="vertical-align:middle"><polyline points="{path}" fill="none" '
        f'stroke="#c2601a" stroke-width="1.5"/><circle cx="{end[0]}" cy="{end[1]}" r="2.5" fill="#c2601a"/></svg>'
    )

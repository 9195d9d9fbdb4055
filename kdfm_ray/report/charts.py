"""Charts as inline SVG, drawn for a width of 360 pixels: a phone's, and a third of a screen's.

What a color says is also said by a dash, a shape or a word. Each chart is markup that needs nothing
from anywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdfm_ray.report.html import BLUE, GRAY, PALETTE, text

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 12, 36  # around the plot
MOST_CELLS_WITH_NUMBERS = 12  # classes of a confusion matrix
DASHES = ("", "7 3", "2 3", "9 3 2 3")
SHAPES = ("dot", "square", "triangle", "cross", "ring")
WIDE = frozenset("mwMW@%…")  # as wide as a letter of 11 pixels gets; CJK is too


@dataclass(frozen=True)
class Line:
    """A line of a chart: ``points`` as (x, y); ``look`` picks its color and dash."""

    name: str
    points: Sequence[tuple[float, float]]
    look: int = 0


@dataclass(frozen=True)
class Dots:
    """Points of one kind in the unit square, y upwards; ``label`` is written in their middle."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    shape: str = "dot"
    label: bool = False


def figure(title: str, picture: str, note: str = "", *, wide: bool = False) -> str:
    """A chart with its title above and a sentence (markup) below."""
    below = f"<figcaption>{note}</figcaption>" if note else ""
    kind = " class=wide" if wide else ""
    return f"<figure{kind}><h3>{text(title)}</h3>{picture}{below}</figure>"


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    percent: bool = False,
    x_label: str = "update",
    from_zero: bool = False,
) -> str:
    """Lines over updates, with their legend; values are fractions where ``percent``.

    Args:
        lines: at least one, with at least one point.
        label: what a reader who cannot see it is told.
        percent: write the values as percentages.
        x_label: below the axis.
        from_zero: the axis begins at 0.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = (0.0 if from_zero else min(ys)), max(ys)
    if percent and high - low < 0.05:  # a flat line needs no magnifying glass
        low = max(0.0, high - 0.05)
    x_ticks = ticks(0, max(*xs, 1))
    y_ticks = ticks(low, high if high > low else low + (0.05 if percent else 1.0))
    legend = 16 * len(lines) if len(lines) > 1 else 0
    plot = _Plot(
        (min(0, x_ticks[0]), max(xs) or 1), (min(low, y_ticks[0]), max(high, y_ticks[-1])), legend
    )
    parts = [_axes(plot, x_ticks, y_ticks, x_label, percent)]
    for number, line in enumerate(lines):
        color, dash = PALETTE[line.look % 3], DASHES[line.look % len(DASHES)]
        place = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in line.points)
        stroke = f'fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{place}" {stroke}/>')
        last = line.points[-1]
        parts.append(
            f'<circle cx="{plot.x(last[0]):.1f}" cy="{plot.y(last[1]):.1f}" r="3" fill="{color}"/>'
        )
        if legend:
            y = 10 + 16 * number
            value = number_text(last[1], percent)
            parts.append(f'<path d="M{LEFT} {y - 4}h28" {stroke}/>')
            parts.append(f'<text x="{LEFT + 36}" y="{y}">{text(line.name)}: {value}</text>')
    return _svg(parts, HEIGHT + legend, label)


def reliability_chart(
    confidence: Sequence[float | None],
    accuracy: Sequence[float | None],
    count: Sequence[int],
    *,
    label: str,
) -> str:
    """Accuracy over confidence: a bar a bin with its number of images; the ideal is dashed."""
    plot = _Plot((0, 1), (0, 1), 0)
    marks = [0, 0.25, 0.5, 0.75, 1]
    parts = [_axes(plot, marks, marks, "confidence", True, x_percent=True)]
    width = (plot.x(1) - plot.x(0)) / len(count)
    for bin_number, (sure, right, images) in enumerate(
        zip(confidence, accuracy, count, strict=True)
    ):
        if right is None or sure is None:
            continue
        x, y = plot.x(bin_number / len(count)) + 1, plot.y(right)
        height = max(1.0, plot.y(0) - y)
        parts.append(
            f'<rect x="{x:.1f}" y="{plot.y(0) - height:.1f}" width="{width - 2:.1f}" '
            f'height="{height:.1f}" fill="{BLUE}" fill-opacity=".35" stroke="{BLUE}"/>'
        )
        parts.append(
            f'<text x="{x + width / 2 - 1:.1f}" y="{max(9.0, y - 4):.1f}" class="s m">'
            f"{short_count(images)}</text>"
        )
    parts.append(
        f'<path d="M{plot.x(0)} {plot.y(0)}L{plot.x(1)} {plot.y(1)}" stroke="#222" fill="none" '
        'stroke-dasharray="5 4"/>'
    )
    return _svg(parts, HEIGHT, label)


def matrix_chart(table: Sequence[Sequence[int]], names: Sequence[str], *, label: str) -> str:
    """A confusion matrix: rows true, columns predicted, darker for a larger share of the row."""
    count = len(table)
    numbers = count <= MOST_CELLS_WITH_NUMBERS
    short = [name if len(name) <= 9 else f"{name[:8]}…" for name in names]
    named = count <= 24
    left = 8 + (max(map(text_width, short)) if named else 6)
    below = left if named else 14
    side = 520.0 if count > MOST_CELLS_WITH_NUMBERS else 300.0
    cell = side / count
    parts = []
    for row, values in enumerate(table):
        total = sum(values) or 1
        for column, value in enumerate(values):
            if not value:
                continue
            share = value / total
            x, y = left + column * cell, 4 + row * cell
            title = f"{text(names[row])} taken for {text(names[column])}: {value}"
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
                f'fill="{BLUE}" fill-opacity="{0.08 + 0.92 * share:.2f}"><title>{title}</title>'
                "</rect>"
            )
            if numbers:
                color = "#fff" if share > 0.75 else "#222"
                parts.append(
                    f'<text x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}" class="m" '
                    f'fill="{color}">{short_count(value)}</text>'
                )
    parts.append(
        f'<rect x="{left:.1f}" y="4" width="{side}" height="{side}" fill="none" stroke="#999"/>'
    )
    if named:
        for place, name in enumerate(short):
            middle = (place + 0.5) * cell
            parts.append(
                f'<text x="{left - 4:.1f}" y="{middle + 8:.1f}" class="e">{text(name)}</text>'
            )
            x = left + middle + 4
            parts.append(
                f'<text class="e" transform="translate({x:.1f} {side + 8:.1f}) rotate(-90)">'
                f"{text(name)}</text>"
            )
    height = side + below + 8
    return _svg(parts, height, label, width=left + side + 8)


def dot_map(groups: Sequence[Dots], *, label: str) -> str:
    """Points in a square, group after group; of labels that would overlap the first is written."""
    side, pad = WIDTH, 14
    span = side - 2 * pad

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return pad + span * point[0], side - pad - span * point[1]

    parts = [f'<rect width="{side}" height="{side}" fill="none" stroke="#ccc"/>']
    labels: list[str] = []
    taken: list[tuple[float, float, float]] = []  # of labels: middle, baseline, half the width
    for group in groups:
        if not group.points:
            continue
        path = "".join(_mark(group.shape, *place(point)) for point in group.points)
        title = f"<title>{text(group.name)}</title>"
        parts.append(f'<path d="{path}" {_mark_style(group.shape, group.color)}>{title}</path>')
        if group.label:
            xs, ys = zip(*map(place, group.points), strict=True)
            half = text_width(group.name) / 2 + 2
            x = min(max(sorted(xs)[len(xs) // 2], half), side - half)
            y = sorted(ys)[len(ys) // 2]
            if all(abs(x - u) >= half + w or abs(y - v) >= 13 for u, v, w in taken):
                taken.append((x, y, half))
                labels.append(
                    f'<text x="{x:.0f}" y="{y + 4:.0f}" class="m b halo">{text(group.name)}</text>'
                )
    return _svg(parts + labels, side, label)


def mark(shape: str, color: str) -> str:
    """One mark of a map, to stand in a legend."""
    path = _mark(shape, 7, 7)
    return (
        '<svg class="mark" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">'
        f'<path d="{path}" {_mark_style(shape, color)}/></svg>'
    )


def bar(share: float, color: str = BLUE) -> str:
    """A bar of a table's cell; ``share`` of its width."""
    width = 100 * max(0.0, min(1.0, share))
    return f'<i class="bar"><i style="width:{width:.1f}%;background:{color}"></i></i>'


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``; ``high`` is larger."""
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def number_text(value: float, percent: bool) -> str:
    """A value as people read it."""
    if percent:
        return f"{100 * value:.3g} %"
    if value and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def text_width(words: str) -> float:
    """About how wide a label is, in pixels at 11 pixels: a bound for common sans-serif fonts."""
    return sum(11.0 if sign in WIDE or ord(sign) > 0x2E7F else 6.7 for sign in words)


def short_count(value: int) -> str:
    """A count in at most four signs."""
    return f"{value}" if value < 10_000 else f"{value / 1000:.0f}k"


class _Plot:
    """Where values lie on the picture."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], legend: float) -> None:
        self._x, self._y, self._legend = x, y, legend

    def x(self, value: float) -> float:
        low, high = self._x
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self._y
        bottom = HEIGHT + self._legend - BOTTOM
        return bottom - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)


def _axes(
    plot: _Plot,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str,
    percent: bool,
    *,
    x_percent: bool = False,
) -> str:
    parts = []
    bottom, right = plot.y(y_ticks[0]), WIDTH - RIGHT
    for value in y_ticks:
        y = plot.y(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        shown = number_text(value, percent)
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" class="e">{shown}</text>')
    for value in x_ticks:
        x = plot.x(value)
        if x <= right + 1:
            shown = number_text(value, x_percent)
            parts.append(f'<path d="M{x:.1f} {bottom:.1f}v4" stroke="{GRAY}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 15:.1f}" class="m">{shown}</text>')
    parts.append(f'<path d="M{LEFT} {bottom:.1f}H{right}" stroke="{GRAY}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 30:.1f}" class="m dimmer">{x_label}</text>')
    return "".join(parts)


def _mark(shape: str, x: float, y: float) -> str:
    """A path of one mark; dots and squares are ends of lines without length."""
    at = f"M{x:.1f} {y:.1f}"
    if shape == "triangle":
        return f"M{x:.1f} {y - 3.2:.1f}l3.2 5.6h-6.4z"
    if shape == "cross":
        return f"M{x - 2.4:.1f} {y - 2.4:.1f}l4.8 4.8m0-4.8l-4.8 4.8"
    if shape == "ring":
        return f"M{x - 2.4:.1f} {y:.1f}a2.4 2.4 0 1 0 4.8 0a2.4 2.4 0 1 0-4.8 0"
    return f"{at}h0"


def _mark_style(shape: str, color: str) -> str:
    if shape == "triangle":
        return f'fill="{color}" fill-opacity=".8"'
    if shape in ("cross", "ring"):
        return f'fill="none" stroke="{color}" stroke-width="1.4"'
    cap = "round" if shape == "dot" else "square"
    width = 5.5 if shape == "dot" else 4.5
    return (
        f'stroke="{color}" stroke-width="{width}" stroke-linecap="{cap}" stroke-opacity=".8" '
        'fill="none"'
    )


def _svg(parts: Sequence[str], height: float, label: str, width: float = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img" aria-label="{text(label)}">{"".join(parts)}</svg>'
    )

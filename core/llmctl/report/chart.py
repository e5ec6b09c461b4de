"""Line charts as inline SVG; colors come from the page's style sheet, which has a light and a dark mode.

A long series is binned by step: the line shows the mean of each bin, a band its minimum and maximum, so outliers stay
visible. If values differ by orders of magnitude, the axis is logarithmic. Steps and values are also attributes of each line, for
the script in ``hover``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from llmctl.report.curve import ticks
from llmctl.report.folder import Points

MAX_POINTS = 240
"""Maximum number of points of a drawn line; longer series are binned."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 10, 34


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: Label in the legend.
        points: (step, value), sorted by step.
        tone: Index of its color.
        dashed: Whether to draw it dashed, with markers.
    """

    name: str
    points: Points
    tone: int = 0
    dashed: bool = False


def figure(
    title: str,
    series: Sequence[Series],
    show: Callable[[float], str],
    wide: bool = False,
    zero: bool = False,
    axis: str = "step",
) -> str:
    """A chart with title and legend, as HTML; empty if no series has a point.

    Args:
        title: Title above the chart.
        series: The lines; those without points are left out.
        show: Formats a value of the y axis.
        wide: Whether it takes the full width of the page on a large screen.
        zero: Whether the y axis starts at 0.
        axis: What the x axis counts.
    """
    drawn = [line for line in series if line.points]
    if not drawn:
        return ""
    legend = "".join(
        f'<span class="key"><svg viewBox="0 0 24 8"><path class="line t{line.tone}{" dashed" * line.dashed}" d="M0 4H24"/>'
        f"</svg>{escape(line.name)}</span>"
        for line in drawn
    )
    names = f'<div class="legend">{legend}</div>' if len(drawn) > 1 else ""
    pictures = f'<div class="small">{_svg(title, drawn, show, zero, 420, 230, axis)}</div>'
    if wide:
        pictures = f'<div class="large">{_svg(title, drawn, show, zero, 900, 320, axis)}</div>{pictures}'
    kind = "chart wide" if wide else "chart"
    return f'<figure class="{kind}"><figcaption>{escape(title)}</figcaption>{names}{pictures}</figure>'


def _svg(
    title: str,
    series: Sequence[Series],
    show: Callable[[float], str],
    zero: bool,
    width: int,
    height: int,
    axis: str = "step",
) -> str:
    values = [value for line in series for _, value in line.points]
    marks, scale = _axis(values, zero)
    last = max([1.0] + [step for line in series for step, _ in line.points])
    low, high = scale(marks[0]), scale(marks[-1])

    def to_pixels(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + step / last * (width - _LEFT - _RIGHT)
        return x, height - _BOTTOM - (scale(value) - low) / (high - low) * (height - _TOP - _BOTTOM)

    axis_name = "" if axis == "step" else f' data-axis="{escape(axis)}"'
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"{axis_name}>']
    for mark in marks:
        y = to_pixels(0, mark)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{width - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(show(mark))}</text>')
    steps = [mark for mark in ticks(0.0, last) if mark <= last and mark == int(mark)]
    for mark in steps if width > 500 or last < 10_000 else steps[::2]:
        x = to_pixels(mark, marks[0])[0]
        anchor = "end" if x > width - 30 else "middle"
        parts.append(
            f'<text x="{x + (_RIGHT - 2) * (anchor == "end"):.1f}" y="{height - 18}" text-anchor="{anchor}">{int(mark):,}</text>'
        )
    parts.append(f'<text x="{(width + _LEFT) / 2:.0f}" y="{height - 4}" text-anchor="middle">{axis}</text>')
    for line in series:
        parts += _line(line, to_pixels, show, axis)
    return "".join([*parts, "</svg>"])


def _line(
    line: Series, to_pixels: Callable[[float, float], tuple[float, float]], show: Callable[[float], str], axis: str
) -> list[str]:
    lows, means, highs = summary(line.points)
    steps, values = (
        "|".join(texts) for texts in ([f"{step:,.0f}" for step, _ in means], [show(value) for _, value in means])
    )
    parts = [
        f'<g data-name="{escape(line.name)}" data-tone="t{line.tone}" data-steps="{escape(steps)}" data-values="{escape(values)}">'
    ]
    if len(line.points) > len(means):
        outline = [to_pixels(*point) for point in [*highs, *reversed(lows)]]
        parts.append(f'<path class="band t{line.tone}" d="{_path(outline)}Z"/>')
    if len(means) > 1:
        dashed = " dashed" if line.dashed else ""
        parts.append(f'<path class="line t{line.tone}{dashed}" d="{_path([to_pixels(*point) for point in means])}"/>')
    if len(means) <= 40:
        for step, value in means:
            x, y = to_pixels(step, value)
            hint = f"<title>{escape(line.name)}, {axis} {step:,.0f}: {escape(show(value))}</title>"
            parts.append(f'<circle class="dot t{line.tone}" cx="{x:.1f}" cy="{y:.1f}" r="2.5">{hint}</circle>')
    return [*parts, "</g>"]


def summary(points: Points, bins: int = MAX_POINTS) -> tuple[Points, Points, Points]:
    """Minimum, mean and maximum of the points in each of at most ``bins`` bins of equal size."""
    count = -(-len(points) // bins) if points else 1
    groups = [points[index : index + count] for index in range(0, len(points), count)]
    middles = [sum(step for step, _ in group) / len(group) for group in groups]
    values = [[value for _, value in group] for group in groups]
    return (
        list(zip(middles, map(min, values), strict=True)),
        list(zip(middles, (sum(row) / len(row) for row in values), strict=True)),
        list(zip(middles, map(max, values), strict=True)),
    )


def _axis(values: Sequence[float], zero: bool) -> tuple[list[float], Callable[[float], float]]:
    """Tick values of the y axis, and the function that maps a value to its scale (identity or log10)."""
    low, high = min(values), max(values)
    middle = sorted(values)[len(values) // 2]
    if low > 0 and high > 50 * middle:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return [10.0**power for power in range(first, max(last, first + 1) + 1)], math.log10
    if zero or high - low > 0.2 * high or low == high:
        low = min(0.0, low)
    return ticks(low, high), float


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)

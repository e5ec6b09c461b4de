"""The learning curve as a self-contained SVG file: losses above, the learning rate below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT = 760, 460, 64, 16
TOP_PANEL, LOW_PANEL = (40, 290), (330, 420)
"""Vertical extent, in pixels, of the losses and of the learning rate."""
TRAIN, EVALUATION, RATE = "#2563eb", "#dc2626", "#059669"

Points = list[tuple[float, float]]


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG document of the rows of ``metrics.jsonl``, without values that are not finite."""
    train, evaluation, rate = (_points(rows, key) for key in ("loss", "eval_loss", "lr"))
    last = max([1.0] + [step for step, _ in train + evaluation])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_legend(bool(evaluation)),
        *_panel(TOP_PANEL, last, [(TRAIN, train), (EVALUATION, evaluation)]),
        *_panel(LOW_PANEL, last, [(RATE, rate)]),
        *_steps(last),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(float(row["step"]), float(row[key])) for row in rows if key in row and math.isfinite(row[key])]


def _legend(evaluated: bool) -> list[str]:
    names = [(TRAIN, "training loss"), (EVALUATION, "evaluation loss"), (RATE, "learning rate")]
    if not evaluated:
        del names[1]
    parts = []
    for index, (colour, name) in enumerate(names):
        x = LEFT + 150 * index
        parts.append(f'<line x1="{x}" y1="20" x2="{x + 24}" y2="20" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 30}" y="24">{name}</text>')
    return parts


def _panel(extent: tuple[int, int], last: float, lines: list[tuple[str, Points]]) -> list[str]:
    top, bottom = extent
    values = [y for _, points in lines for _, y in points] or [0.0, 1.0]
    marks = ticks(min(0.0, *values) if min(values) < 0 else 0.0, max(values))
    low, high = marks[0], marks[-1]

    def y_of(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = []
    for tick in marks:
        y = y_of(tick)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for colour, points in lines:
        path = " ".join(f"{_x_of(step, last):.1f},{y_of(value):.1f}" for step, value in points)
        if len(points) > 1:
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(points) < 40:
            parts += [
                f'<circle cx="{_x_of(x, last):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colour}"/>' for x, y in points
            ]
    return parts


def _steps(last: float) -> list[str]:
    y = LOW_PANEL[1] + 18
    marks = [tick for tick in ticks(0.0, last) if tick <= last and tick == int(tick)]
    parts = [f'<text x="{_x_of(tick, last):.1f}" y="{y}" text-anchor="middle">{int(tick)}</text>' for tick in marks]
    return [*parts, f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{y + 18}" text-anchor="middle">step</text>']


def _x_of(step: float, last: float) -> float:
    return LEFT + step / last * (WIDTH - LEFT - RIGHT)


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers from at or below ``low`` to at or above ``high``."""
    if high - low <= 1e-9 * abs(low):
        # Floats of this size have no round numbers between them.
        high = low + max(1.0, abs(low))
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * index for index in range(first, last + 1)]

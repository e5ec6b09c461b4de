"""Curves that lie on each other, as SVG: the values above, and below how far each is from the first one, in powers of ten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH, LEFT, RIGHT = 760, 64, 16
UPPER, LOWER = (56, 300), (336, 460)
HEIGHT = LOWER[1] + 48
COLOURS = ("#9ca3af", "#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed")
FLOOR = 1e-9
"""Smallest relative distance that is shown."""


def draw(curves: Mapping[str, Sequence[float]]) -> str:
    """An SVG document.

    Args:
        curves: Name -> values of the steps 1, 2, ...; the first one is what the others are compared with.
    """
    names, steps = list(curves), max(map(len, curves.values()))
    first = curves[names[0]]
    values = [value for curve in curves.values() for value in curve]
    low, high = min(values), max(values)
    apart = {name: [abs(a - b) / abs(b) for a, b in zip(curves[name], first, strict=True)] for name in names[1:]}
    most = max((value for values in apart.values() for value in values), default=FLOOR)
    top, bottom = math.ceil(math.log10(max(most, 10 * FLOOR))), math.log10(FLOOR)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for number, name in enumerate(names):
        x, y = LEFT + number % 3 * 220, 18 + number // 3 * 18
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 28}" y2="{y}" {_stroke(number, 2)}/>')
        parts.append(f'<text x="{x + 36}" y="{y + 4}">{name}</text>')
    parts += _axis(UPPER, low, high, lambda value: f"{value:.2f}", [low + (high - low) * i / 4 for i in range(5)])
    powers = range(int(bottom), top + 1)
    parts += _axis(LOWER, bottom, top, lambda value: f"1e{value:.0f}", [p for p in powers if (p - top) % 2 == 0])
    for number, name in enumerate(names):
        parts.append(_line(UPPER, low, high, curves[name], steps, _stroke(number)))
        if name in apart:
            values = [math.log10(max(value, FLOOR)) for value in apart[name]]
            parts.append(_line(LOWER, bottom, top, values, steps, _stroke(number, 1)))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts += [
        f'<text x="{LEFT}" y="{UPPER[0] - 6}">loss</text>',
        f'<text x="{LEFT}" y="{LOWER[0] - 6}">relative distance from {names[0]}</text>',
        *(
            f'<text x="{_x(step, steps):.1f}" y="{LOWER[1] + 18}" text-anchor="middle">{step}</text>'
            for step in sorted({1, *range(steps // 4, steps + 1, max(1, steps // 4))})
        ),
        f'<text x="{middle}" y="{LOWER[1] + 38}" text-anchor="middle">step</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _stroke(number: int, width: int = 0) -> str:
    """The first line is wide and pale; the others, without a width, are dashed in turns, so that each is seen where they meet."""
    if number == 0:
        return f'stroke="{COLOURS[0]}" stroke-width="7" stroke-opacity="0.5"'
    if width:
        return f'stroke="{COLOURS[number]}" stroke-width="{width}"'
    return f'stroke="{COLOURS[number]}" stroke-width="2" stroke-dasharray="6 24" stroke-dashoffset="{-6 * number}"'


def _axis(extent: tuple[int, int], low: float, high: float, shown, marks: Sequence[float]) -> list[str]:
    parts = []
    for mark in marks:
        y = _y(mark, extent, low, high)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{shown(mark)}</text>')
    return parts


def _line(extent: tuple[int, int], low: float, high: float, values: Sequence[float], steps: int, stroke: str) -> str:
    path = " ".join(f"{_x(i + 1, steps):.1f},{_y(value, extent, low, high):.1f}" for i, value in enumerate(values))
    return f'<polyline points="{path}" fill="none" {stroke}/>'


def _x(step: float, steps: int) -> float:
    return LEFT + (step - 1) / max(1, steps - 1) * (WIDTH - LEFT - RIGHT)


def _y(value: float, extent: tuple[int, int], low: float, high: float) -> float:
    return extent[1] - (value - low) / (high - low) * (extent[1] - extent[0])

"""Points with names over a logarithmic axis, as SVG; points of a kind have a colour, and pairs of points may be joined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 760, 600
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 84, 552
COLOURS = ("#2563eb", "#6b7280", "#d97706", "#059669", "#dc2626", "#7c3aed")
DOT = 4.5
LETTER, LINE = 6.1, 12.0
"""Width of a letter and height of a line of a name."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Point:
    """A point.

    Attributes:
        name: What is written beside it; empty = nothing.
        x: Its place on the linear axis.
        y: Its place on the logarithmic axis, above 0.
    """

    name: str
    x: float
    y: float


def draw(kinds: Mapping[str, Sequence[Point]], across: str, up: str, joined: Sequence[tuple[Point, Point]] = ()) -> str:
    """An SVG document.

    Args:
        kinds: Name of a kind -> its points.
        across: What the linear axis is.
        up: What the logarithmic axis is.
        joined: Points with a line between them.
    """
    points = [point for kind in kinds.values() for point in kind]
    left, right = math.floor(min(point.x for point in points)), math.ceil(max(point.x for point in points))
    low = math.floor(math.log10(min(point.y for point in points)))
    high = math.ceil(math.log10(max(point.y for point in points)))

    def place(point: Point) -> tuple[float, float]:
        x = LEFT + (point.x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return x, BOTTOM - (math.log10(point.y) - low) / (high - low) * (BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for power in range(low, high + 1):
        y = place(Point("", left, 10.0**power))[1]
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    for mark in range(left, right + 1):
        x = place(Point("", mark, 10.0**low))[0]
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{BOTTOM}" stroke="#f3f4f6"/>')
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{mark}</text>')
    for pair in joined:
        (x1, y1), (x2, y2) = map(place, pair)
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#d1d5db" stroke-width="2"/>'
        )
    taken = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in map(place, points)]
    for number, (kind, members) in enumerate(kinds.items()):
        colour, x, y = COLOURS[number % len(COLOURS)], LEFT + number % 3 * 220, 16 + number // 3 * 18
        parts.append(
            f'<circle cx="{x + 6}" cy="{y}" r="5" fill="{colour}"/><text x="{x + 18}" y="{y + 4}">{kind}</text>'
        )
        for point in members:
            x, y = place(point)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{DOT}" fill="{colour}"/>')
            if point.name:
                box = _free(taken, x, y, LETTER * len(point.name))
                taken.append(box)
                parts.append(
                    f'<text x="{box[0]:.1f}" y="{box[3] - 2.5:.1f}" font-size="11" fill="{colour}">{point.name}</text>'
                )
    parts += [
        f'<text x="{LEFT}" y="{TOP - 10}">{up}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{BOTTOM + 38}" text-anchor="middle">{across}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _free(taken: Sequence[Box], x: float, y: float, width: float) -> Box:
    """The place for a name, right or left of a point, that is nearest to its height and covers nothing."""
    sides = x + DOT + 3, x - DOT - 3 - width
    boxes = [
        (start, y + sign * step - LINE / 2, start + width, y + sign * step + LINE / 2)
        for step in range(0, 60, 2)
        for start in sides
        for sign in (1, -1)
    ]
    inside = [box for box in boxes if box[0] > LEFT and box[2] < WIDTH - RIGHT]
    return next((box for box in inside if not any(map(lambda other: _overlap(box, other), taken))), inside[0])


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

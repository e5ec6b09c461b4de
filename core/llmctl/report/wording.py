"""Numbers as people read them, on the screen and on the page."""

from __future__ import annotations

import json
from typing import Any

PARTS = ("accuracy", "exact_match", "rewards/accuracies")
"""Metrics that are parts of a whole."""


def format_metric(name: str, value: float | None) -> str:
    """One value in the unit of its metric; a dash for none."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if name in PARTS else f"{value:.4g}"


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(value: float) -> str:
    """Bytes in the unit that reads best."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}" if value < 1000 * factor else f"{value / factor:,.0f} {unit}"
    return f"{value:.0f} B"


def count(value: float) -> str:
    """A number with few digits, thousands and more as k, M and G."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}" if value < 1000 * factor else f"{value / factor:,.0f}{unit}"
    return f"{value:.3g}"


def metric(name: str, value: Any) -> str:
    """A metric of a file that may hold anything; a dash for what is no number."""
    return format_metric(name, value) if isinstance(value, (int, float)) and not isinstance(value, bool) else "-"


def spoken(name: str) -> str:
    """A metric's name in words."""
    return name.replace("_", " ")


def setting(value: Any) -> str:
    """A configuration value as one would write it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)

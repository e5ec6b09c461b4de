"""Numbers and values as text, for terminal and report."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

PERCENTAGES = ("accuracy", "exact_match", "rewards/accuracies")
"""Metrics that are shown as percentages."""


def format_metric(name: str, value: float | None) -> str:
    """A value in the unit of its metric; a dash for None."""
    if value is None:
        return "-"
    if name in PERCENTAGES:
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if 1000 <= abs(value) < 10**9 else f"{value:.4g}"


def moment(text: str) -> str:
    """A moment in the form of ISO 8601, to the minute; other texts as they are."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


def size(value: float) -> str:
    """Bytes with a unit."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}" if value < 1000 * factor else f"{value / factor:,.0f} {unit}"
    return f"{value:.0f} B"


def count(value: float) -> str:
    """A number with three digits and k, M or G."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}" if value < 1000 * factor else f"{value / factor:,.0f}{unit}"
    return f"{value:.3g}"


def metric(name: str, value: Any) -> str:
    """A metric read from a file; a dash if it is not a number."""
    return format_metric(name, value) if isinstance(value, (int, float)) and not isinstance(value, bool) else "-"


def label(name: str) -> str:
    """Label of a metric, such as ``eval loss``."""
    return name.replace("_", " ")


def setting(value: Any) -> str:
    """A configuration value as it would be written in a file."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)

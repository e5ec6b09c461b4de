"""HTML elements that pages share; texts are escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llmctl._version import __version__
from llmctl.report.hover import SCRIPT
from llmctl.report.style import STYLE

GENERATOR = '<meta name="generator" content="llmctl report'
"""Identifies a report, which may be overwritten."""


def document(title: str, body: Sequence[str]) -> str:
    """A complete HTML page.

    Args:
        title: Its title, as text.
        body: Its elements, as HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f'{GENERATOR} {__version__}">\n<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(part for part in body if part)
        + (f"\n<script>{SCRIPT}</script>" if any("data-values" in part for part in body) else "")
        + "\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A section with a heading; empty if it has no content."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def fold(title: str, content: str, unfolded: bool = False) -> str:
    """A collapsible element; empty if it has no content."""
    state = " open" if unfolded else ""
    return f"<details{state}><summary>{escape(title)}</summary>\n{content}\n</details>" if content else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A table; empty if it has no rows.

    Args:
        columns: Headings; no header row if all are empty.
        rows: Cells, as text.
        numbers: Whether all columns but the first are numbers, aligned right.
    """
    if not rows:
        return ""
    kinds = ["", *(' class="number"' if numbers else "" for _ in columns[1:])]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    ]
    heading = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<div class="scroll"><table>{heading}<tbody>{"".join(lines)}</tbody></table></div>'


def commands(lines: Sequence[str]) -> str:
    """A block of commands, one per line."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration as ``section.key`` -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found.update({f"{key}.{name}": inner for name, inner in flat(value).items()})
        else:
            found[key] = value
    return found

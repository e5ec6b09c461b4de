"""Pieces of a page. Every text that comes from a run is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llmctl._version import __version__
from llmctl.report.style import STYLE

GENERATOR = '<meta name="generator" content="llmctl report'
"""By this a file is known to be a report, which may be replaced."""


def document(title: str, body: Sequence[str]) -> str:
    """A whole page around sections that are markup already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f'{GENERATOR} {__version__}">\n<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A headed section; nothing when it has no content."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def fold(title: str, content: str, unfolded: bool = False) -> str:
    """Content that is shown on a click; nothing when there is none."""
    state = " open" if unfolded else ""
    return f"<details{state}><summary>{escape(title)}</summary>\n{content}\n</details>" if content else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A table of texts; nothing when it has no rows.

    Args:
        columns: Titles; may all be empty.
        rows: Texts, escaped here.
        numbers: All columns but the first hold numbers.
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
    """Commands to copy, one a line."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested configuration as ``section.key`` -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found.update({f"{key}.{name}": inner for name, inner in flat(value).items()})
        else:
            found[key] = value
    return found

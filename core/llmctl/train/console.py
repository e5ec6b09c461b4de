"""What a run prints. A progress bar is drawn on terminals and in notebooks, lines are printed to pipes and files."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.train.callbacks.base import Callback
from llmctl.train.callbacks.json_events import JsonEvents
from llmctl.train.callbacks.progress import ProgressBar, ProgressLines


class Console:
    """Prints to standard output.

    Args:
        quiet: Print nothing.
        verbose: Print details.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose

    def event(self, kind: str, values: Mapping[str, Any]) -> bool:
        """Takes an event of a run where events are printed as such; False = it is to be printed in words."""
        return self.quiet

    def print(self, line: str) -> None:
        """Prints a line."""
        if not self.quiet:
            print(line, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table, fitted to the terminal or to 100 columns."""
        if self.quiet:
            return
        from rich.console import Console as RichConsole
        from rich.table import Table

        console: Any = RichConsole(width=None if sys.stdout.isatty() else 100)
        grid = Table(*columns, title=title, title_justify="left")
        for row in rows:
            grid.add_row(*row)
        console.print(grid, markup=False)

    def progress(self, every: int) -> Callback:
        """The callback that shows the progress of training.

        Args:
            every: Steps between two lines, which are printed above a bar.
        """
        if self.quiet:
            return Callback()
        return ProgressBar(every) if _can_redraw() else ProgressLines(every)


class JsonConsole(Console):
    """Prints JSON lines to standard output, an object for each event, and no words.

    Args:
        quiet: No progress on standard error.
    """

    def print(self, line: str) -> None:
        """Prints an event ``note``."""
        self.event("note", {"text": line})

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints an event ``table``."""
        self.event("table", {"title": title, "rows": [dict(zip(columns, row, strict=True)) for row in rows]})

    def progress(self, every: int) -> Callback:
        """The callback that prints events ``step``, ``evaluate`` and ``save``."""
        return JsonEvents(lambda kind, **values: self.event(kind, values), every)

    def event(self, kind: str, values: Mapping[str, Any]) -> bool:
        """Prints an event."""
        print(json.dumps({"event": kind, **values}, ensure_ascii=False, default=str), flush=True)
        return True


WIDGETS = "ipywidgets"
"""The package that rich needs to redraw in a notebook."""

STDOUT = Console()
"""The console of a run that is not quiet."""


def _can_redraw() -> bool:
    """Whether standard output is a terminal, or a notebook that has the widgets which rich draws in."""
    if sys.stdout.isatty():
        return os.environ.get("TERM") != "dumb"
    from rich.console import Console as RichConsole

    return RichConsole().is_jupyter and importlib.util.find_spec(WIDGETS) is not None

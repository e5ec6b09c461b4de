"""What a run prints. A progress bar is drawn on terminals and in notebooks, lines are printed to pipes and files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from llmctl.train.callbacks.base import Callback
from llmctl.train.callbacks.progress import ProgressBar, ProgressLines


class Console:
    """Prints to standard output.

    Args:
        quiet: Print nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet

    def print(self, line: str) -> None:
        """Prints a line."""
        if not self._quiet:
            print(line, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table, fitted to the terminal or to 100 columns."""
        if self._quiet:
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
            every: Steps between two lines, or between two lines of further means above a bar.
        """
        if self._quiet:
            return Callback()
        return ProgressBar(every) if _can_redraw() else ProgressLines(every)


WIDGETS = "ipywidgets"
"""The package that rich needs to redraw in a notebook."""

STDOUT = Console()
"""The console of a run that is not quiet."""


def _can_redraw() -> bool:
    """Whether standard output is a terminal, or a notebook that has the widgets which rich draws in."""
    if sys.stdout.isatty():
        return True
    from rich.console import Console as RichConsole

    return RichConsole().is_jupyter and importlib.util.find_spec(WIDGETS) is not None

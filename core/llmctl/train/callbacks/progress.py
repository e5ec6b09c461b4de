"""What a run shows: a progress bar with loss, learning rate, speed and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from llmctl.report.wording import clock, format_metric
from llmctl.train.loop import Hook, Plan, Update


def display(every: int, plain: bool | None = None) -> Display:
    """The hook that fits standard output.

    Args:
        every: Updates between two plain lines, or lines of further means above the bar.
        plain: Lines instead of a bar; None = unless standard output is a terminal.
    """
    plain = not sys.stdout.isatty() if plain is None else plain
    return Lines(every) if plain else Bar(every)


class Display(Hook):
    """Shows updates and evaluations."""

    _steps = 0

    def on_start(self, first: int, plan: Plan) -> None:
        self._steps, self._first, self._began = plan.steps, first, time.monotonic()

    def on_evaluation(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        self.show(f"step {step:>5}/{self._steps}  epoch {epoch:.2f}  " + format_metrics(metrics))

    def show(self, line: str) -> None:
        """Prints a line."""
        print(line, flush=True)


class Lines(Display):
    """A line for every so many updates.

    Args:
        every: Updates between two lines.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._tokens, self._seconds = 0, 0.0

    def on_update(self, update: Update) -> None:
        self._tokens += update.tokens
        self._seconds += update.seconds
        if update.step % self.every and update.step not in (1, self._steps):
            return
        speed = self._tokens / max(self._seconds, 1e-9)
        self._tokens, self._seconds = 0, 0.0
        spent = (time.monotonic() - self._began) / (update.step - self._first + 1)
        left = clock(spent * (self._steps - update.step))
        self.show(
            f"step {update.step:>5}/{self._steps}  epoch {update.epoch:.2f}  loss {update.loss:.4f}  lr {update.lr:.2e}  "
            f"grad norm {update.grad_norm:.2f}  {format_metrics(update.means)}{'  ' if update.means else ''}"
            f"{speed:,.0f} tokens/s  {left} left"
        )


class Bar(Display):
    """A bar that is redrawn in place, with evaluations and further means printed above it.

    Args:
        every: Updates between two lines of means.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every

    def on_start(self, first: int, plan: Plan) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        super().on_start(first, plan)
        self._speed = 0.0
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("training", total=plan.steps, completed=first - 1, state="")
        self._bar.start()

    def on_update(self, update: Update) -> None:
        speed = update.tokens / max(update.seconds, 1e-9)
        self._speed = 0.9 * self._speed + 0.1 * speed if self._speed else speed
        state = f"loss {update.loss:.4f}  lr {update.lr:.2e}  {self._speed:,.0f} tokens/s"
        self._bar.update(self._task, completed=update.step, state=state)
        if update.means and (update.step % self.every == 0 or update.step in (1, self._steps)):
            self.show(f"step {update.step:>5}/{self._steps}  loss {update.loss:.4f}  {format_metrics(update.means)}")

    def show(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)

    def on_end(self) -> None:
        self._bar.stop()


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics on one line; parts of a whole as percentages."""
    return "  ".join(f"{name.replace('_', ' ')} {format_metric(name, value)}" for name, value in metrics.items())


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Prints a table, fitted to the terminal or to 100 columns."""
    from rich.console import Console
    from rich.table import Table

    console: Any = Console(width=None if sys.stdout.isatty() else 100)
    grid = Table(*columns, title=title, title_justify="left")
    for row in rows:
        grid.add_row(*row)
    console.print(grid, markup=False)

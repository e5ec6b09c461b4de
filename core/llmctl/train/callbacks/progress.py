"""The progress of training: a bar with loss, learning rate, speed and time left, or plain lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from llmctl.io.progress import silent
from llmctl.report.wording import clock, format_metric
from llmctl.train.callbacks.base import Callback, LoopSettings, StepMetrics


class Progress(Callback):
    """Shows steps and evaluations."""

    _last = 0

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        self._last, self._first, self._began = settings.max_steps, first_step, time.monotonic()

    def on_evaluate(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        self.print(f"step {step:>5}/{self._last}  epoch {epoch:.2f}  " + format_metrics(metrics))

    def print(self, line: str) -> None:
        """Prints a line."""
        print(line, flush=True)


class ProgressLines(Progress):
    """A line every ``every`` steps.

    Args:
        every: Steps between two lines.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._tokens, self._seconds = 0, 0.0

    def on_step_end(self, metrics: StepMetrics) -> None:
        self._tokens += metrics.tokens
        self._seconds += metrics.seconds
        if metrics.step % self.every and metrics.step not in (1, self._last):
            return
        speed = self._tokens / max(self._seconds, 1e-9)
        self._tokens, self._seconds = 0, 0.0
        spent = (time.monotonic() - self._began) / (metrics.step - self._first + 1)
        left = clock(spent * (self._last - metrics.step))
        self.print(
            f"step {metrics.step:>5}/{self._last}  epoch {metrics.epoch:.2f}  loss {metrics.loss:.4f}  "
            f"lr {metrics.lr:.2e}  grad norm {metrics.grad_norm:.2f}  {format_metrics(metrics.means)}"
            f"{'  ' if metrics.means else ''}{speed:,.0f} tokens/s  {left} left"
        )


class ProgressBar(Progress):
    """A bar that is redrawn in place, with lines on steps and evaluations above it. Both fit 80 columns.

    Args:
        every: Steps between two lines.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        from rich import progress

        super().on_train_begin(first_step, settings)
        self._speed = 0.0
        # What else says how far it is would draw over the bar.
        self._silence = silent()
        self._silence.__enter__()
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=16),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[state]}"),
            progress.TimeRemainingColumn(compact=True),
        )
        self._task = self._bar.add_task("training", total=settings.max_steps, completed=first_step - 1, state="")
        self._bar.start()

    def on_step_end(self, metrics: StepMetrics) -> None:
        speed = metrics.tokens / max(metrics.seconds, 1e-9)
        self._speed = 0.9 * self._speed + 0.1 * speed if self._speed else speed
        state = f"loss {metrics.loss:.4f}  {self._speed:,.0f} tokens/s"
        self._bar.update(self._task, completed=metrics.step, state=state, description="training")
        if metrics.step % self.every == 0 or metrics.step in (1, self._last):
            means = f"  {format_metrics(metrics.means)}" if metrics.means else ""
            self.print(
                f"step {metrics.step:>5}/{self._last}  epoch {metrics.epoch:.2f}  loss {metrics.loss:.4f}  "
                f"lr {metrics.lr:.2e}  grad norm {metrics.grad_norm:.2f}{means}"
            )

    def on_evaluate_begin(self, step: int) -> None:
        self._bar.update(self._task, description="evaluating")

    def on_save(self, step: int) -> None:
        self._bar.update(self._task, description="training")

    def print(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)

    def on_train_end(self) -> None:
        self._bar.stop()
        self._silence.__exit__(None, None, None)


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Metrics on one line; parts of a whole as percentages."""
    return "  ".join(f"{name.replace('_', ' ')} {format_metric(name, value)}" for name, value in metrics.items())

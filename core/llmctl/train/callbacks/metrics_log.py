"""``metrics.jsonl``, a JSON object per line, and the learning curve drawn from it.

Two kinds of rows: a step (``step, epoch, loss, lr, grad_norm, tokens, tokens_per_second, seconds``; tokens and speed since
the row before; the peaks of ``runtime.memory``; a method may add means such as ``rewards/margins``) and an evaluation
(``step, epoch, eval_loss, ...``).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llmctl.checkpoint import atomic_file
from llmctl.io.atomic import explain_os_errors
from llmctl.report.curve import draw
from llmctl.report.folder import read_rows as read
from llmctl.runtime import memory
from llmctl.train.callbacks.base import Callback, LoopSettings, StepMetrics


class RowWriter(Protocol):
    """Where rows go besides."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes a row."""
        ...


class MetricsLogger(Callback):
    """Writes ``metrics.jsonl`` and ``curve.svg`` into a folder; a resumed run appends to what is there.

    Args:
        folder: The output folder.
        every: Steps between two rows; the first and the last step always have one.
        writers: Get every row too.
    """

    def __init__(self, folder: Path, every: int, writers: Sequence[RowWriter] = ()) -> None:
        self._writers = writers
        self.metrics, self.curve, self.every = folder / "metrics.jsonl", folder / "curve.svg", every
        self._tokens, self._seconds, self._last = 0, 0.0, 0

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        truncate(self.metrics, first_step - 1)
        self._last = settings.max_steps

    def on_step_end(self, metrics: StepMetrics) -> None:
        self._tokens += metrics.tokens
        self._seconds += metrics.seconds
        if metrics.step % self.every and metrics.step not in (1, self._last):
            return
        row = {
            "step": metrics.step,
            "epoch": round(metrics.epoch, 4),
            "loss": metrics.loss,
            "lr": metrics.lr,
            "grad_norm": metrics.grad_norm,
            **metrics.means,
            "tokens": self._tokens,
            "tokens_per_second": round(self._tokens / max(self._seconds, 1e-9), 1),
            "seconds": round(self._seconds, 3),
            **memory.peaks(),
        }
        self._tokens, self._seconds = 0, 0.0
        self._append(row)

    def on_evaluate(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        self._append({"step": step, "epoch": round(epoch, 4), **metrics})

    def on_save(self, step: int) -> None:
        self._draw()

    def on_train_end(self) -> None:
        self._draw()

    def _append(self, row: dict[str, Any]) -> None:
        append(self.metrics, row)
        for writer in self._writers:
            writer.write(row)

    def _draw(self) -> None:
        try:
            self.curve.write_text(draw(read(self.metrics)), encoding="utf-8")
        except OSError as error:
            warnings.warn(f"{self.curve} could not be written: {error}", UserWarning, stacklevel=2)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a row to a file of JSON lines.

    Raises:
        CheckpointError: It cannot be written.
    """
    with explain_os_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def truncate(path: Path, step: int) -> None:
    """Removes the rows of later steps, which a resumed run repeats."""
    if not path.exists():
        return
    kept = [row for row in read(path) if row["step"] <= step]
    with atomic_file(path) as file:
        file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

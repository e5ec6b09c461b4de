"""What a run leaves in writing: ``metrics.jsonl``, a JSON object per line, and the learning curve drawn from it.

Two kinds of lines: an update (``step, epoch, loss, lr, grad_norm, tokens, tokens_per_second, seconds``; tokens and speed
are those since the line before; the peaks of ``memory``; a method may add means such as ``rewards/margins``) and an
evaluation (``step, epoch, eval_loss, ...``). The screen is in ``display``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmctl.checkpoint import atomic_file
from llmctl.io.atomic import explain_os_errors
from llmctl.report.curve import draw
from llmctl.report.folder import read_rows as read
from llmctl.runtime import memory
from llmctl.train.callbacks.scalar_writers import Scalars
from llmctl.train.loop import Hook, Plan, Update


class Journal(Hook):
    """Writes ``metrics.jsonl`` and ``curve.svg`` into a folder; continues what is there.

    Args:
        folder: The output folder.
        every: Updates between two lines; the first and the last always have one.
        sinks: Get every line too.
    """

    def __init__(self, folder: Path, every: int, sinks: Sequence[Scalars] = ()) -> None:
        self._sinks = sinks
        self.metrics, self.curve, self.every = folder / "metrics.jsonl", folder / "curve.svg", every
        self._tokens, self._seconds, self._first, self._last = 0, 0.0, 0, 0

    def on_start(self, first: int, plan: Plan) -> None:
        truncate(self.metrics, first - 1)
        self._first, self._last = first, plan.steps

    def on_update(self, update: Update) -> None:
        self._tokens += update.tokens
        self._seconds += update.seconds
        if update.step % self.every and update.step not in (1, self._last):
            return
        row = {
            "step": update.step,
            "epoch": round(update.epoch, 4),
            "loss": update.loss,
            "lr": update.lr,
            "grad_norm": update.grad_norm,
            **update.means,
            "tokens": self._tokens,
            "tokens_per_second": round(self._tokens / max(self._seconds, 1e-9), 1),
            "seconds": round(self._seconds, 3),
            **memory.peaks(),
        }
        self._tokens, self._seconds = 0, 0.0
        self._append(row)

    def on_evaluation(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        self._append({"step": step, "epoch": round(epoch, 4), **metrics})

    def on_save(self, step: int) -> None:
        self._draw()

    def on_end(self) -> None:
        self._draw()

    def _append(self, row: dict[str, Any]) -> None:
        append(self.metrics, row)
        for sink in self._sinks:
            sink.line(row)

    def _draw(self) -> None:
        try:
            self.curve.write_text(draw(read(self.metrics)), encoding="utf-8")
        except OSError as error:
            warnings.warn(f"{self.curve} could not be written: {error}", UserWarning, stacklevel=2)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line to a file of JSON lines.

    Raises:
        CheckpointError: It cannot be written.
    """
    with explain_os_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def truncate(path: Path, step: int) -> None:
    """Drops the rows of later steps, which a resumed run writes again."""
    if not path.exists():
        return
    kept = [row for row in read(path) if row["step"] <= step]
    with atomic_file(path) as file:
        file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

"""The progress of training as JSON lines, an object for each event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmctl.train.callbacks.base import Callback, StepMetrics


class JsonEvents(Callback):
    """Gives events of the loop to a function.

    Args:
        emit: Called with the kind of an event and its values.
        every: Steps between two events ``step``; the first and the last step always have one.
    """

    def __init__(self, emit: Callable[..., None], every: int) -> None:
        self._emit, self._every, self._last = emit, every, 0

    def on_train_begin(self, first_step: int, settings: Any) -> None:
        self._last = settings.max_steps

    def on_step_end(self, metrics: StepMetrics) -> None:
        if metrics.step % self._every == 0 or metrics.step in (1, self._last):
            speed = metrics.tokens / max(metrics.seconds, 1e-9)
            self._emit(
                "step", step=metrics.step, epoch=round(metrics.epoch, 4), loss=metrics.loss, lr=metrics.lr,
                grad_norm=metrics.grad_norm, tokens=metrics.tokens, tokens_per_second=round(speed, 1), **metrics.means,
            )  # fmt: skip

    def on_evaluate(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        self._emit("evaluate", step=step, epoch=round(epoch, 4), **metrics)

    def on_save(self, step: int) -> None:
        self._emit("save", step=step)

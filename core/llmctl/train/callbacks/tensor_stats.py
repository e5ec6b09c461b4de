"""Statistics of weights and gradients by tensor, for finding what makes a run unstable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import paddle

from llmctl.train.callbacks.base import Callback, LoopSettings
from llmctl.train.callbacks.metrics_log import append, truncate

FILE = "statistics.jsonl"


class TensorStats(Callback):
    """Appends a line to ``statistics.jsonl`` every ``every`` steps, before the optimizer step.

    A line has ``step`` and ``tensors``: for each, the L2 norms of weight and gradient and the largest absolute gradient.
    Gradients are those of the mean loss, clipped.

    Args:
        folder: The output folder.
        parameters: Name -> parameter; frozen ones are left out.
        every: Steps between two lines.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, paddle.Tensor], every: int) -> None:
        self._file, self._every = folder / FILE, every
        self._parameters = {name: p for name, p in parameters.items() if not p.stop_gradient}

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        truncate(self._file, first_step - 1)

    @paddle.no_grad()
    def on_pre_optimizer_step(self, step: int) -> None:
        if step % self._every:
            return
        rows = {name: _row(p, p.grad) for name, p in self._parameters.items() if p.grad is not None}
        append(self._file, {"step": step, "tensors": rows})


def _row(weight: paddle.Tensor, gradient: paddle.Tensor) -> dict[str, float]:
    return {
        "weight": float(weight.norm()),
        "gradient": float(gradient.norm()),
        "gradient_max": float(gradient.abs().max()),
    }

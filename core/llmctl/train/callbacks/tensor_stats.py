"""Statistics of weights and gradients by tensor, for finding what makes a run unstable."""

from __future__ import annotations

import math
from pathlib import Path

import paddle

from llmctl.parallel.ranks import ALONE, Ranks
from llmctl.train.callbacks.base import Callback, LoopSettings
from llmctl.train.callbacks.metrics_log import append, truncate
from llmctl.train.optim.master_weights import MasterWeights, sum_squares

FILE = "statistics.jsonl"


class TensorStats(Callback):
    """Appends a line to ``statistics.jsonl`` every ``every`` steps, before the optimizer step.

    A line has ``step`` and ``tensors``: for each, the L2 norms of weight and gradient and the largest absolute gradient.
    Gradients are those of the mean loss, clipped.

    Args:
        folder: The output folder, in which rank 0 writes.
        weights: What the optimizer updates.
        every: Steps between two lines.
        ranks: The processes that train together; all of them have this callback.
    """

    def __init__(self, folder: Path, weights: MasterWeights, every: int, ranks: Ranks = ALONE) -> None:
        self._file, self._weights, self._every, self._ranks = folder / FILE, weights, every, ranks

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        if self._ranks.main:
            truncate(self._file, first_step - 1)

    @paddle.no_grad()
    def on_pre_optimizer_step(self, step: int) -> None:
        if step % self._every:
            return
        rows: dict[str, dict[str, float]] = {}
        for own in self._ranks.all_gather_object(self._sums()):
            for name, (weight, gradient, most) in own.items():
                row = rows.setdefault(name, {"weight": 0.0, "gradient": 0.0, "gradient_max": 0.0})
                row["weight"] = math.hypot(row["weight"], weight)
                row["gradient"] = math.hypot(row["gradient"], gradient)
                row["gradient_max"] = max(row["gradient_max"], most)
        if self._ranks.main:
            append(self._file, {"step": step, "tensors": rows})

    def _sums(self) -> dict[str, tuple[float, float, float]]:
        """Name -> norm of the weight, norm and largest element of the gradient, of what this rank counts."""
        found = {}
        for name, tensor in self._weights.tensors.items():
            grad = None if tensor.grad is None else self._weights.counted(name, tensor.grad)
            if grad is not None:
                weight = self._weights.counted(name, tensor.detach())
                norms = (math.sqrt(sum_squares([part])) for part in (weight, grad))
                found[name] = (*norms, float(grad.abs().max()))
        return found

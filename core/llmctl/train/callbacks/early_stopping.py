"""Early stopping: training ends when evaluations no longer improve."""

from __future__ import annotations

import math
from pathlib import Path

from llmctl.train.callbacks import metrics_log
from llmctl.train.callbacks.base import Callback, LoopSettings
from llmctl.train.callbacks.checkpoints import better


class EarlyStopping(Callback):
    """Asks to stop after ``patience`` evaluations without a better one.

    It counts in ``metrics.jsonl``, so that a resumed run counts the evaluations before it; the logger of that file must
    come first.

    Args:
        metrics_file: The file.
        metric: What is compared.
        patience: Evaluations to wait.
    """

    def __init__(self, metrics_file: Path, metric: str, patience: int) -> None:
        self._metrics_file, self._metric, self._patience = metrics_file, metric, patience

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        self._count()

    def on_evaluate(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        self._count()

    def _count(self) -> None:
        values = [row[self._metric] for row in metrics_log.read(self._metrics_file) if self._metric in row]
        best = 0
        for index, value in enumerate(values):
            if better(self._metric, value, values[best]) or math.isnan(values[best]):
                best = index
        self.stop = bool(values) and len(values) - 1 - best >= self._patience

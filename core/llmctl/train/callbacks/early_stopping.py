"""Stopping early: when evaluations no longer get better."""

from __future__ import annotations

import math
from pathlib import Path

from llmctl.train.callbacks import metrics_log
from llmctl.train.callbacks.checkpoints import better
from llmctl.train.loop import Hook, Plan


class Patience(Hook):
    """Asks to stop after so many evaluations without a better one.

    It counts in ``metrics.jsonl``, so that a continued run counts on; the journal's hook comes first.

    Args:
        metrics: The file.
        metric: What is compared.
        evaluations: How many to wait.
    """

    def __init__(self, metrics: Path, metric: str, evaluations: int) -> None:
        self._metrics, self._metric, self._evaluations = metrics, metric, evaluations

    def on_start(self, first: int, plan: Plan) -> None:
        self._count()

    def on_evaluation(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        self._count()

    def _count(self) -> None:
        values = [row[self._metric] for row in metrics_log.read(self._metrics) if self._metric in row]
        best = 0
        for index, value in enumerate(values):
            if better(self._metric, value, values[best]) or math.isnan(values[best]):
                best = index
        self.stop = bool(values) and len(values) - 1 - best >= self._evaluations

"""Writing the metrics to TensorBoard and VisualDL, each a package of an extra.

A number of a step is ``train/NAME``, one of an evaluation ``evaluation/NAME``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.jobs.loggers import PACKAGES
from llmctl.train.callbacks.base import Callback, LoopSettings


class ScalarWriter(Callback):
    """Writes every number of every row of ``metrics.jsonl`` as a scalar.

    Args:
        name: Value of ``train.log_to``.
        folder: The output folder, in which the events have a folder of that name.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder / name

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        self._writer = _writer(self._name, self._folder, first_step)

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes a row of ``metrics.jsonl``."""
        group = "train" if "loss" in row else "evaluation"
        for key, value in row.items():
            if key != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}/{key}", value, row["step"])

    def on_train_end(self) -> None:
        self._writer.close()


def _writer(name: str, folder: Path, first_step: int) -> Any:
    """The package's writer. TensorBoard purges what an interrupted run wrote of steps that are now repeated."""
    module = importlib.import_module(PACKAGES[name])
    if name == "tensorboard":
        return module.SummaryWriter(str(folder), purge_step=first_step if first_step > 1 else None)
    return module.LogWriter(logdir=str(folder))

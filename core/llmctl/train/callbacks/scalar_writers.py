"""Handing the lines of ``metrics.jsonl`` to TensorBoard and VisualDL, each a package of an extra.

A number of an update is ``train/NAME``, one of an evaluation ``evaluation/NAME``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmctl.jobs.loggers import PACKAGES
from llmctl.train.loop import Hook, Plan


class Scalars(Hook):
    """Writes every number of every line as a scalar, from the start of the loop to its end.

    Args:
        name: Value of ``train.log_to``.
        folder: The output folder, in which the events have a folder of that name.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder / name

    def on_start(self, first: int, plan: Plan) -> None:
        self._writer = _writer(self._name, self._folder, first)

    def line(self, row: Mapping[str, Any]) -> None:
        """Takes a line that was written to ``metrics.jsonl``."""
        group = "train" if "loss" in row else "evaluation"
        for key, value in row.items():
            if key != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}/{key}", value, row["step"])

    def on_end(self) -> None:
        self._writer.close()


def scalars(names: Sequence[str], folder: Path) -> list[Scalars]:
    """The hooks of these values of ``train.log_to``."""
    return [Scalars(name, folder) for name in dict.fromkeys(names) if name != "none"]


def _writer(name: str, folder: Path, first: int) -> Any:
    """The package's writer; TensorBoard then hides what a killed run wrote of steps that are now made again."""
    module = importlib.import_module(PACKAGES[name])
    if name == "tensorboard":
        return module.SummaryWriter(str(folder), purge_step=first if first > 1 else None)
    return module.LogWriter(logdir=str(folder))

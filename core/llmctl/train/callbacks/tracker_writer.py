"""Writing the metrics to a service, which never ends a run: if it fails, a warning says so and training goes on."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.train.callbacks.base import Callback, LoopSettings
from llmctl.train.callbacks.trackers import TRACKERS, Tracker

RUN_ID = "run-id"
"""File in the tracker's folder with the id of the run, which a resumed run continues."""


@dataclass(frozen=True)
class RunFacts:
    """What a service is told of a run.

    Attributes:
        project: Name of the project; MLflow calls it experiment.
        run_name: Name of the run.
        config: Its configuration, nested.
    """

    project: str
    run_name: str
    config: Mapping[str, Any]


class TrackerWriter(Callback):
    """Sends every number of every row of ``metrics.jsonl``.

    Args:
        name: Value of ``train.log_to``.
        folder: The output folder, in which the service's files have a folder of that name.
        facts: What the service is told of the run.
    """

    def __init__(self, name: str, folder: Path, facts: RunFacts) -> None:
        self._name, self._folder, self._facts = name, folder / name, facts
        self._tracker: Tracker | None = None

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        kind = TRACKERS[self._name]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            run_id = self._run_id(first_step)
            if kind.logged_in():
                try:
                    self._tracker = self._open(run_id, offline=False)
                    return
                except Exception as error:
                    self._warn(f"cannot be reached ({_first_line(error)})")
            self._tracker = self._open(run_id, offline=True)
            where = kind.upload.replace("FOLDER", str(self._folder))
            self._warn(f"the run is kept in {self._folder}; to upload or see it: {where}")
        except Exception as error:
            self._give_up(error)

    def write(self, row: Mapping[str, Any]) -> None:
        """Sends a row of ``metrics.jsonl``."""
        if self._tracker is None:
            return
        group = "train" if "loss" in row else "evaluation"
        numbers = {f"{group}/{key}": float(value) for key, value in row.items()
                   if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)}  # fmt: skip
        try:
            self._tracker.log(numbers, row["step"])
        except Exception as error:
            self._give_up(error)

    def on_train_end(self) -> None:
        if self._tracker is None:
            return
        try:
            self._tracker.close()
        except Exception as error:
            self._give_up(error)

    def _open(self, run_id: str, offline: bool) -> Tracker:
        facts = self._facts
        return TRACKERS[self._name](self._folder, facts.project, facts.run_name, facts.config, run_id, offline)

    def _run_id(self, first_step: int) -> str:
        """The id of the run that is continued, or a new one."""
        file = self._folder / RUN_ID
        if first_step > 1 and file.is_file():
            return file.read_text(encoding="utf-8").strip()
        made = uuid.uuid4().hex[:12]
        file.write_text(made + "\n", encoding="utf-8")
        return made

    def _give_up(self, error: Exception) -> None:
        self._tracker = None
        self._warn(f"gets no more metrics ({_first_line(error)}); metrics.jsonl has them all")

    def _warn(self, text: str) -> None:
        warnings.warn(f"train.log_to={self._name}: {text}", UserWarning, stacklevel=2)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

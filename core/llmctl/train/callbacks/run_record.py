"""The state of a run, kept in ``run.json`` and ``report.html`` from its first step until it ends."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from llmctl.checkpoint import atomic_file
from llmctl.errors import LlmctlError
from llmctl.report.write import NAME, write
from llmctl.runtime import memory
from llmctl.train.callbacks.base import Callback, LoopSettings

ENDS = ("after", "best", "steps", "seconds", "test", "next")
"""Keys of ``run.json`` that only a finished run has."""


class RunRecord(Callback):
    """Writes both files at each checkpoint, and when the block that it guards is entered and left.

    Args:
        folder: The output folder.
        info: Content of ``run.json``, which the run keeps filling.
    """

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        self._folder, self._info = folder, info

    def __enter__(self) -> RunRecord:
        for key in ENDS:
            self._info.pop(key, None)
        self._info["outcome"] = {"state": "running"}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._outcome("finished")
            self._write()
            return
        if isinstance(error, KeyboardInterrupt):
            self._outcome("interrupted")
        else:
            self._outcome(
                "failed", f"{error}" if isinstance(error, LlmctlError) else f"{type(error).__name__}: {error}"
            )
        try:
            self._write()
        except (LlmctlError, OSError) as second:
            warnings.warn(f"the report could not be written: {second}", UserWarning, stacklevel=2)

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        self._info["outcome"]["steps_planned"] = settings.max_steps
        self._write()

    def on_save(self, step: int) -> None:
        self._info["outcome"]["step"] = step
        self._write()

    def _outcome(self, state: str, message: str = "") -> None:
        self._info["outcome"].update(state=state, **({"message": message} if message else {}))

    def _write(self) -> None:
        earlier = self._info.get("peak_memory", {})
        self._info["peak_memory"] = {key: max(value, earlier.get(key, 0)) for key, value in memory.peaks().items()}
        write_info(self._folder, self._info)
        write([self._folder], self._folder / NAME)


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """Writes ``run.json``."""
    with atomic_file(folder / "run.json") as file:
        file.write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

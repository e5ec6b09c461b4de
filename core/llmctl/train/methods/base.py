"""What a run asks of a training method: its data, its model, and what only this method does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmctl.jobs.job import CheckedJob
from llmctl.parallel.ranks import Ranks
from llmctl.train.console import Console
from llmctl.train.place import Place
from llmctl.train.task import Task
from llmctl.train.trainable import base
from llmctl.train.trainable.base import Trainable


class RunData(Protocol):
    """What a run is trained and evaluated on."""

    task: Task
    held_out: str

    def samples(self, model: Any) -> list[dict[str, str]]:
        """``prompt``, ``expected`` and ``answer`` of held-out examples to show; may be empty."""


def _nothing(*_: Any) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Method:
    """A training method.

    Attributes:
        prepare: (job, console): makes the data.
        load: (job, checkpoint to resume from or None, place): loads the trainable model.
        bind: (job, data, trainable, console): gives the data what it needs of the model, before the first loss.
        start: (data, ranks): computes or reads what is kept in the output folder, once that is open; all ranks call it together.
        finish: (model, data, console): evaluates the final model once more, for ``run.json``.
    """

    prepare: Callable[[Any, Console], RunData]
    load: Callable[[CheckedJob[Any], Path | None, Place], Trainable] = base.load
    bind: Callable[[Any, Any, Trainable, Console], Any] = _nothing
    start: Callable[[Any, Ranks], Any] = _nothing
    finish: Callable[[Any, Any, Console], Mapping[str, Any]] = _nothing

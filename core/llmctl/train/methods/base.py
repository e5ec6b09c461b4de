"""What a run asks of a training method: its data, its model, and what is particular to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmctl.jobs.job import CheckedJob
from llmctl.train.task import Task
from llmctl.train.trainable import base
from llmctl.train.trainable.base import Subject


class RunData(Protocol):
    """What a run trains and is measured on."""

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
        prepare: Makes the data of a job.
        load: Loads the model of a job, and the checkpoint to continue, if any.
        bind: (job, data, trainable): gives the data what it needs of the model, before the first loss.
        finish: (model, data): measures the final model once, for ``run.json``.
    """

    prepare: Callable[[Any], RunData]
    load: Callable[[CheckedJob[Any], Path | None], Subject] = base.load
    bind: Callable[[Any, Any, Subject], Any] = _nothing
    finish: Callable[[Any, Any], Mapping[str, Any]] = _nothing

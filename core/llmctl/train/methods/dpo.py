"""Direct preference optimisation: a run over a job's pairs. What is trained on is a ``DpoTask``, made in ``dpo_data``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError
from llmctl.jobs.dpo import DpoJob
from llmctl.nn.dropout import switch_off
from llmctl.train import trainer as runs
from llmctl.train.loop import Hook
from llmctl.train.methods import dpo_data, dpo_reference
from llmctl.train.methods.dpo_task import DpoTask, Reference
from llmctl.train.trainable import base
from llmctl.train.trainable.base import Subject


def run(job: DpoJob, hooks: Sequence[Hook] = ()) -> dict[str, Any]:
    """Trains, and writes the output folder; see ``run.run``."""
    data = None

    def prepare(job: DpoJob) -> dpo_data.DpoData:
        nonlocal data
        data = dpo_data.prepare(job)
        return data

    def load(job: DpoJob, start: Path | None) -> Subject:
        assert data is not None
        loaded = base.load(job, start)
        switch_off(loaded.model)
        data.task.reference = reference(job, loaded, data.task)
        return loaded

    return runs.run(job, prepare, load, hooks)


def reference(job: DpoJob, trained: Subject, task: DpoTask) -> Reference:
    """What the job's model is measured against.

    Raises:
        ConfigError: The way to train keeps no model as it was.
    """
    settings = job.config.dpo
    if settings.reference_free:
        return dpo_reference.Free()
    if trained.reference is None:
        raise ConfigError(
            f"method.name={job.config.method.name} keeps no reference model; choose another, or set "
            "dpo.reference_free=true"
        )
    if not settings.precompute_reference:
        return dpo_reference.Live(trained.reference())
    key = dpo_reference.key_of(job.model, task, job.config.model.dtype, job.config.method.base)
    return dpo_reference.Precomputed(job.output / runs.REFERENCE, key, task, trained.reference)

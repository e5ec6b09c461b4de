"""Training every parameter. A checkpoint is a model folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llmctl.io.sizes import parse_bytes
from llmctl.jobs.job import CheckedJob
from llmctl.train.trainable.base import Subject, precision_of
from llmctl.train.trainable.model_folder import ModelWriter


def load(job: CheckedJob[Any], start: Path | None) -> Subject:
    """The job's model with all parameters in motion; see ``subject.load``."""
    model = (job.model.at(start) if start else job.model).layer(precision_of(job).held)
    return replace(whole(model, job), reference=partial(_frozen, job))


def _frozen(job: CheckedJob[Any]) -> Callable[[], AbstractContextManager[Any]]:
    """A second model from the job's folder, which does not move."""
    model = job.model.layer(precision_of(job).held)
    for parameter in model.parameters():
        parameter.stop_gradient = True
    return lambda: nullcontext(model)


def whole(model: Any, job: CheckedJob[Any]) -> Subject:
    """The layer of a job's model, of which every parameter moves."""
    writer = ModelWriter(job.model, job.tokenizer, parse_bytes(job.config.output.max_shard_bytes))
    kinds = {tensor.name: tensor.kind for tensor in job.model.plugin.card.expand(job.model.dims)}
    return Subject(
        model=model,
        write=lambda folder, dtype: writer.write(folder, model, dtype),
        read=lambda folder: job.model.at(folder).fill(model),
        decays=lambda name: kinds[name] not in ("norm", "bias"),
        notes={},
    )

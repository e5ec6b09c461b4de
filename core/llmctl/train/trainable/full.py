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
from llmctl.train.place import HERE, Place
from llmctl.train.trainable.base import Trainable, precision_of
from llmctl.train.trainable.model_folder import ModelWriter


def load(job: CheckedJob[Any], start: Path | None, place: Place = HERE) -> Trainable:
    """Loads the job's model with all parameters trainable; see ``base.load``."""
    model = place.layer(job.model.at(start) if start else job.model, precision_of(job).params)
    return replace(all_parameters(model, job, place), reference=partial(_frozen_copy, job, place))


def _frozen_copy(job: CheckedJob[Any], place: Place) -> Callable[[], AbstractContextManager[Any]]:
    model = place.layer(job.model, precision_of(job).params)
    place.connect(model, job.model)
    place.freeze(model)
    return lambda: nullcontext(model)


def all_parameters(model: Any, job: CheckedJob[Any], place: Place = HERE) -> Trainable:
    """The layer of a job's model with all parameters trainable."""
    writer = ModelWriter(job.model, job.tokenizer, parse_bytes(job.config.output.max_shard_bytes))
    kinds = {tensor.name: tensor.kind for tensor in job.model.plugin.card.expand(job.model.dims)}
    return Trainable(
        model=model,
        save=lambda folder, dtype, state: writer.write(folder, state, dtype),
        restore=lambda folder: job.model.at(folder).fill(model, place.cut, place.keep),
        decays=lambda name: kinds[name] not in ("norm", "bias"),
        metadata={},
        place=place,
    )

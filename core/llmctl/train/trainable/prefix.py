"""Prefix tuning: trainable virtual tokens before a frozen model. A checkpoint is the folder of a prefix.

The saved prefix is the output of the projection; a checkpoint also has the parameters of the projection, to resume from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmctl import runtime
from llmctl.adapters import folder as folders
from llmctl.adapters.attach import add_prefix
from llmctl.adapters.base_model import short_name
from llmctl.adapters.prefix import Prefix, shape_of
from llmctl.checkpoint.formats import safetensors
from llmctl.errors import CheckpointError
from llmctl.jobs.job import CheckedJob
from llmctl.nn.arrays import to_numpy
from llmctl.train.trainable.base import Trainable, base_record, precision_of

PROJECTION = "projection.safetensors"


@dataclass(frozen=True)
class PrefixTraining:
    """The trainable virtual tokens of a model.

    Attributes:
        layer: The ``nn.prefix.Prefix``.
        projected: Whether they are computed by a projection.
        job: The job of the run.
    """

    layer: Any
    projected: bool
    job: CheckedJob[Any]

    def save(self, folder: Path, dtype: str) -> None:
        """Writes the prefix and the tokenizer into an existing folder."""
        model = self.job.model
        prefix = Prefix(self.layer.values(), short_name(model.folder), base_record(self.job))
        folders.write(folder, prefix, model.plugin, model.dims, dtype)
        self.job.tokenizer.save(folder)
        folders.copy_generation(model.folder, folder)

    def save_extra(self, folder: Path, dtype: str) -> None:
        """Adds the parameters of the projection to a checkpoint."""
        from llmctl.adapters.peft_format import as_planned

        if self.projected:
            values = {name: to_numpy(parameter) for name, parameter in self.layer.named_parameters()}
            whole = {name: as_planned(name, np.ascontiguousarray(value), dtype) for name, value in values.items()}
            safetensors.write_file(folder / PROJECTION, whole)

    def restore(self, folder: Path) -> None:
        """Reads a checkpoint.

        Raises:
            CheckpointError: It holds no projection, or one of other parameters.
        """
        from llmctl.adapters.peft_format import check_tensors, load

        if not self.projected:
            stored = folders.read(folder, self.job.model.plugin, self.job.model.dims)
            assert isinstance(stored, Prefix), "a checkpoint of this run is a prefix"
            self.layer.set_values(stored.values)
            return
        if not (folder / PROJECTION).is_file():
            raise CheckpointError(f"{folder} holds no {PROJECTION}; it cannot be resumed with method.prefix_projection")
        tensors = safetensors.read_header(folder / PROJECTION)
        parameters = dict(self.layer.named_parameters())
        check_tensors(folder, tensors, {name: tuple(parameter.shape) for name, parameter in parameters.items()})
        for name, parameter in parameters.items():
            parameter.set_value(load(tensors[name]))


def load(job: CheckedJob[Any], start: Path | None) -> Trainable:
    """Loads the job's model with trainable virtual tokens and a frozen base; see ``base.load``."""
    method = job.config.method
    model = job.model.layer(precision_of(job).params)
    runtime.seed(job.config.train.seed)
    shape = shape_of(job.model.dims, method.virtual_tokens)
    hidden = (method.projection_hidden or shape[3] * shape[4]) if method.prefix_projection else 0
    layer = add_prefix(model, shape, hidden)
    training = PrefixTraining(layer, method.prefix_projection, job)
    if start:
        training.restore(start)
    return Trainable(
        model=model,
        save=training.save,
        restore=training.restore,
        decays=lambda name: "bias" not in name,
        metadata={
            "trained_parameters": int(sum(p.size for p in layer.parameters())),
            "virtual_tokens": method.virtual_tokens,
        },
        save_extra=training.save_extra,
        reference=lambda: partial(_without, model),
    )


@contextmanager
def _without(model: Any) -> Iterator[Any]:
    """Context with the base model: the model without its virtual tokens."""
    prefix, model.prefix = model.prefix, None
    try:
        yield model
    finally:
        model.prefix = prefix

"""Prefix tuning: trainable virtual tokens before a frozen model. A checkpoint is the folder of a prefix.

The saved prefix is the output of the projection; a checkpoint also has the parameters of the projection, to resume from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from llmctl.adapters import folder as folders
from llmctl.adapters.attach import add_prefix
from llmctl.adapters.base_model import short_name
from llmctl.adapters.prefix import Prefix, shape_of
from llmctl.checkpoint.formats import safetensors
from llmctl.errors import CheckpointError
from llmctl.jobs.job import CheckedJob
from llmctl.nn.arrays import assign, to_numpy
from llmctl.nn.prefix import Prefix as Layer
from llmctl.train.place import HERE, Place
from llmctl.train.trainable.base import State, Trainable, base_record, precision_of

PREFIX = "prefix."
"""What the names of its parameters begin with in a model."""

PROJECTION = "projection.safetensors"


@dataclass(frozen=True)
class PrefixTraining:
    """The trainable virtual tokens of a model.

    Attributes:
        layer: The ``nn.prefix.Prefix``.
        make: Makes a prefix of all heads and layers, whose parameters have no memory yet.
        projected: Whether they are computed by a projection.
        job: The job of the run.
        place: Which part of the model this rank has.
    """

    layer: Any
    make: Callable[[], Any]
    projected: bool
    job: CheckedJob[Any]
    place: Place

    def save(self, folder: Path, dtype: str, state: State) -> None:
        """Writes the prefix and the tokenizer into an existing folder."""
        model = self.job.model
        whole = self.make()
        for name, parameter in whole.named_parameters():
            assign(parameter, to_numpy(state[PREFIX + name]))
        prefix = Prefix(whole.values(), short_name(model.folder), base_record(self.job))
        folders.write(folder, prefix, model.plugin, model.dims, dtype)
        self.job.tokenizer.save(folder)
        folders.copy_generation(model.folder, folder)

    def save_extra(self, folder: Path, dtype: str, state: State) -> None:
        """Adds the parameters of the projection to a checkpoint."""
        from llmctl.adapters.peft_weights import as_planned

        if self.projected:
            values = {name: to_numpy(state[PREFIX + name]) for name, _ in self.make().named_parameters()}
            whole = {name: as_planned(name, np.ascontiguousarray(value), dtype) for name, value in values.items()}
            safetensors.write_file(folder / PROJECTION, whole)

    def restore(self, folder: Path) -> None:
        """Reads a checkpoint.

        Raises:
            CheckpointError: It holds no projection, or one of other parameters.
        """
        from llmctl.adapters.peft_weights import check_tensors, load

        if not self.projected:
            stored = folders.read(folder, self.job.model.plugin, self.job.model.dims)
            assert isinstance(stored, Prefix), "a checkpoint of this run is a prefix"
            for layer in self.layer.held:
                name = f"pair_{layer}"
                self.place.set(PREFIX + name, getattr(self.layer, name), stored.values[layer])
            return
        if not (folder / PROJECTION).is_file():
            raise CheckpointError(f"{folder} holds no {PROJECTION}; it cannot be resumed with method.prefix_projection")
        tensors = safetensors.read_header(folder / PROJECTION)
        check_tensors(folder, tensors, {name: tuple(each.shape) for name, each in self.make().named_parameters()})
        for name, parameter in self.layer.named_parameters():
            self.place.set(PREFIX + name, parameter, load(tensors[name]))


def load(job: CheckedJob[Any], start: Path | None, place: Place = HERE) -> Trainable:
    """Loads the job's model with trainable virtual tokens and a frozen base; see ``base.load``."""
    method = job.config.method
    model = place.layer(job.model, precision_of(job).params)
    shape = shape_of(job.model.dims, method.virtual_tokens)
    hidden = (method.projection_hidden or shape[3] * shape[4]) if method.prefix_projection else 0
    with paddle.LazyGuard():
        layer = add_prefix(model, shape, hidden)
    if place.stage is not None:
        layer.keep(place.stage.held)
    place.cut_prefix(*shape[3:], layers=shape[0])
    place.cut.apply(layer, job.config.train.seed, PREFIX)
    make = partial(_lazy, shape, layer.parameters()[0].dtype, hidden)
    training = PrefixTraining(layer, make, method.prefix_projection, job, place)
    if start:
        training.restore(start)
    return Trainable(
        model=model,
        save=training.save,
        restore=training.restore,
        decays=lambda name: "bias" not in name,
        metadata={
            "trained_parameters": sum(prod(p.shape) for p in make().parameters()),
            "virtual_tokens": method.virtual_tokens,
        },
        save_extra=training.save_extra,
        reference=lambda: partial(_without, model),
        place=place,
    )


def _lazy(*args: Any) -> Any:
    """A ``nn.prefix.Prefix`` whose parameters have no memory yet."""
    with paddle.LazyGuard():
        return Layer(*args)


@contextmanager
def _without(model: Any) -> Iterator[Any]:
    """Context with the base model: the model without its virtual tokens."""
    prefix, model.prefix = model.prefix, None
    try:
        yield model
    finally:
        model.prefix = prefix

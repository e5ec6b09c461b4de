"""What a run trains: a model, which of its parameters are trainable, and how what was trained is saved and restored.

There is one module for each value of ``method.name`` (``full`` trains every parameter); all are independent of the training
method: supervised fine-tuning and preference optimization train the same ones. ``load`` finds the one of a configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.adapters.folder import IGNORED
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.jobs import precision, registry
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.precision import Precision
from llmctl.train.place import HERE, Place

State = Mapping[str, Any]
"""Name of a parameter -> its whole tensor: a paddle tensor, or what has its ``shape``, ``dtype``, ``astype`` and ``numpy``."""

Reference = Callable[[], Callable[[], AbstractContextManager[Any]]]
"""Loads the model as it was before training. The result opens a context that gives this model; outside of the context the
trained model is unchanged."""


@dataclass(frozen=True)
class Trainable:
    """A model to train.

    Attributes:
        model: The layer; frozen parameters have ``stop_gradient``.
        save: Writes what is trained, in a dtype, into an existing folder, from the whole tensors of the model's parameters.
        restore: Reads what ``save`` wrote into a folder.
        decays: Whether the parameter of a name has weight decay.
        metadata: Goes into ``run.json``: facts that the configuration does not say.
        lr_scales: Factor of the learning rate for the parameter of a name.
        reference: Loads the model as it was before training; None = it cannot be had.
        save_extra: Adds to a checkpoint, in a dtype, what only a resumed run needs, from the same tensors.
        place: Which part of the model this rank holds.
    """

    model: Any
    save: Callable[[Path, str, State], None]
    restore: Callable[[Path], None]
    decays: Callable[[str], bool]
    metadata: dict[str, Any]
    lr_scales: Callable[[str], float] = lambda name: 1.0
    reference: Reference | None = None
    save_extra: Callable[[Path, str, State], None] = lambda folder, dtype, state: None
    place: Place = HERE


def precision_of(job: CheckedJob[Any]) -> Precision:
    """The dtypes of the job's run."""
    return precision.of(job.config.model.dtype, job.config.train)


def base_record(job: CheckedJob[Any]) -> dict[str, Any]:
    """What the folder of an adapter says of its base: its identity, and the keys of its config.json that were ignored."""
    ignored = job.config.model.ignore_config_keys
    return {"base": job.base, **({IGNORED: list(ignored)} if ignored else {})}


def load(job: CheckedJob[Any], start: Path | None, place: Place = HERE) -> Trainable:
    """The trainable model that the job's ``method.name`` asks for.

    Args:
        job: The checked job.
        start: Checkpoint to resume from; None = begin from the job's model.
        place: Which part of the model this rank trains.

    Raises:
        LlmctlError: The tensors of the model or of the checkpoint do not fit.
    """
    method = job.config.method
    trainable: Trainable = registry.resolve(registry.TRAINABLES[method.name])(job, start, place)
    place.connect(trainable.model, job.model)
    if method.neftune_alpha:
        add_noise(trainable.model, job.model.plugin.card, job.model.dims, method.neftune_alpha)
    return trainable


def add_noise(model: Any, card: Family, dims: Dims, alpha: float) -> None:
    """Adds NEFTune noise to the token embeddings."""
    from llmctl.nn import neftune

    tables = [tensor for tensor in card.expand(dims) if tensor.kind == "embed"]
    tokens = next(tensor.name for tensor in tables if "vocab" in tensor.param.axes[0].symbols)
    neftune.add_noise(dict(model.named_sublayers())[tokens.removesuffix(".weight")], alpha)

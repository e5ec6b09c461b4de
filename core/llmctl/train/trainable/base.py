"""What a run trains: a model, which of its parameters move and how, and how what was trained is stored and read back.

A subject is made by one module for each way to train (``full`` trains every parameter) and is neutral to the method:
supervised fine-tuning and preference optimisation train the same subjects. ``load`` finds the one a configuration names.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.jobs import precision, registry
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.precision import Precision

Reference = Callable[[], Callable[[], AbstractContextManager[Any]]]


@dataclass(frozen=True)
class Subject:
    """A model to train.

    Attributes:
        model: The layer; parameters that must not move have ``stop_gradient``.
        write: Writes what was trained, in a type, into an existing folder.
        read: Takes over what ``write`` wrote into a folder.
        decays: Whether weight decay applies to the parameter of a name.
        notes: Goes into ``run.json``: facts that the configuration does not say.
        rates: What the learning rate is multiplied by for the parameter of a name.
        reference: Makes the model ready as it was before any training. What it returns opens a context that gives that
            model; outside of it the trained model is as it was. None = the method has no such model.
        write_more: Writes what only a continued run needs, in a type, beside what ``write`` wrote into a checkpoint.
    """

    model: Any
    write: Callable[[Path, str], None]
    read: Callable[[Path], None]
    decays: Callable[[str], bool]
    notes: dict[str, Any]
    rates: Callable[[str], float] = lambda name: 1.0
    reference: Reference | None = None
    write_more: Callable[[Path, str], None] = lambda folder, dtype: None


def precision_of(job: CheckedJob[Any]) -> Precision:
    """The types of the job's run."""
    return precision.of(job.config.model.dtype, job.config.train)


def load(job: CheckedJob[Any], start: Path | None) -> Subject:
    """The subject that the job's ``method.name`` names.

    Args:
        job: A job that passed its checks.
        start: Checkpoint of an earlier run to continue; None = begin from the job's model.

    Raises:
        LlmctlError: The model's tensors, or those of the checkpoint, do not fit.
    """
    method = job.config.method
    subject: Subject = registry.resolve(registry.TRAINABLES[method.name])(job, start)
    if method.neftune_alpha:
        add_noise(subject.model, job.model.plugin.card, job.model.dims, method.neftune_alpha)
    return subject


def add_noise(model: Any, card: Family, dims: Dims, alpha: float) -> None:
    """NEFTune on the card's table of vectors for tokens."""
    from llmctl.nn import neftune

    tables = [tensor for tensor in card.expand(dims) if tensor.kind == "embed"]
    tokens = next(tensor.name for tensor in tables if "vocab" in tensor.param.axes[0].symbols)
    neftune.add_noise(dict(model.named_sublayers())[tokens.removesuffix(".weight")], alpha)

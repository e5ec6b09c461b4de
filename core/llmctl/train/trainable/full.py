"""Training every parameter. A checkpoint is a model folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llmctl.checkpoint import load_weights, open_folder
from llmctl.checkpoint.build import load_model
from llmctl.io.sizes import parse_bytes
from llmctl.train.trainable.base import ModelJob, Subject, precision_of
from llmctl.train.trainable.model_folder import ModelWriter


def load(job: ModelJob, start: Path | None) -> Subject:
    """The job's model with all parameters in motion; see ``subject.load``."""
    model, dims, plugin = load_model(start or job.model, job.plugin.card.name, precision_of(job).held)
    limit = parse_bytes(job.config.output.max_shard_bytes)
    subject = whole(model, ModelWriter(plugin, dims, job.model, job.tokenizer, limit))
    return replace(subject, reference=partial(_frozen, job))


def _frozen(job: ModelJob) -> Callable[[], AbstractContextManager[Any]]:
    """A second model from the job's folder, which does not move."""
    model, _, _ = load_model(job.model, job.plugin.card.name, precision_of(job).held)
    for parameter in model.parameters():
        parameter.stop_gradient = True
    return lambda: nullcontext(model)


def whole(model: Any, writer: ModelWriter) -> Subject:
    """A layer of which every parameter moves, stored by ``writer``."""
    plugin, dims = writer.plugin, writer.dims
    kinds = {tensor.name: tensor.kind for tensor in plugin.card.expand(dims)}

    def read(folder: Path) -> None:
        renames = plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
        load_weights(open_folder(folder), model, renames)

    return Subject(
        model=model,
        write=lambda folder, dtype: writer.write(folder, model, dtype),
        read=read,
        decays=lambda name: kinds[name] not in ("norm", "bias"),
        notes={},
    )

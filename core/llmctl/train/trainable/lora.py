"""LoRA: trainable low-rank adapters and a frozen base. A checkpoint is the folder of an adapter.

PiSSA is saved as a plain adapter of twice the rank, [A, A0] and [B, -B0], which is used with the unchanged base: the weights
change by scale * (A B - A0 B0). A checkpoint in a half type has A0 and B0 unrounded too, since the run resumes from the base
without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from llmctl import runtime
from llmctl.adapters import folder as folders
from llmctl.adapters import targets
from llmctl.adapters.adapter import Adapter, LoraWeights, scale_of
from llmctl.adapters.attach import add_lora, quantize_base
from llmctl.adapters.base_model import short_name
from llmctl.adapters.peft_format import as_planned
from llmctl.adapters.peft_format import load as read_tensor
from llmctl.checkpoint.formats import safetensors
from llmctl.errors import ConfigError
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.precision import HALF
from llmctl.nn.arrays import to_numpy
from llmctl.nn.lora import pissa_init
from llmctl.quant.linear import weight_bytes
from llmctl.train.trainable.base import Reference, Trainable, base_record, precision_of

FLOAT = "float"
"""Value of ``method.base`` for a base that is not quantized."""

START = "start.safetensors"
"""The file of A0 and B0 in a checkpoint in a half type."""

Start = tuple[np.ndarray, np.ndarray]
"""A0 and B0 of a layer whose adapter was initialised with the principal part of its base."""


@dataclass(frozen=True)
class LoraTraining:
    """The trainable adapters of a model.

    Attributes:
        layers: Path -> ``nn.lora.LoraLinear``.
        starts: Path -> what was subtracted from the base; empty without PiSSA.
        blank: The adapter to save, still without its matrices.
        job: The job of the run.
    """

    layers: dict[str, Any]
    starts: dict[str, Start]
    blank: Adapter
    job: CheckedJob[Any]

    def save(self, folder: Path, dtype: str) -> None:
        """Writes the adapter and the tokenizer into an existing folder."""
        parts = {path: self._part(path, layer) for path, layer in self.layers.items()}
        adapter = Adapter(parts, self.blank.rank_stabilised, self.blank.dropout, self.blank.base, self.blank.record)
        model = self.job.model
        folders.write(folder, adapter, model.plugin, model.dims, dtype)
        self.job.tokenizer.save(folder)
        folders.copy_generation(model.folder, folder)

    def save_extra(self, folder: Path, dtype: str) -> None:
        """Adds A0 and B0 unrounded to a checkpoint whose ``save`` rounded them."""
        if self.starts and dtype in HALF:
            arrays = {
                f"{path}.{name}": array
                for path, start in self.starts.items()
                for name, array in zip("ab", start, strict=True)
            }
            whole = {name: as_planned(name, array, array.dtype.name) for name, array in arrays.items()}
            safetensors.write_file(folder / START, whole)

    def restore(self, folder: Path) -> None:
        """Reads what ``save`` wrote."""
        parts = _parts(folder, self.job)
        for path, layer in self.layers.items():
            part, rank = parts[path], layer.lora_A.shape[1]
            layer.set_weights(part.a[:, :rank], part.b[:rank], part.magnitude)

    def without_adapter(self, model: Any) -> Reference:
        """The same layers with their adapters disabled, which serve as the reference of preference optimisation."""

        def prepare() -> Callable[[], AbstractContextManager[Any]]:
            for path, start in self.starts.items():
                self.layers[path].initial = tuple(paddle.to_tensor(part) for part in start)
            return disabled

        @contextmanager
        def disabled() -> Iterator[Any]:
            for layer in self.layers.values():
                layer.disabled = True
            try:
                yield model
            finally:
                for layer in self.layers.values():
                    layer.disabled = False

        return prepare

    def _part(self, path: str, layer: Any) -> LoraWeights:
        a, b = to_numpy(layer.lora_A), to_numpy(layer.lora_B)
        if path in self.starts:
            a0, b0 = self.starts[path]
            a, b = np.concatenate([a, a0], axis=1), np.concatenate([b, -b0])
        magnitude = None if layer.lora_magnitude is None else to_numpy(layer.lora_magnitude)
        return LoraWeights(a, b, layer.scale, magnitude)


def load(job: CheckedJob[Any], start: Path | None) -> Trainable:
    """Loads the job's model with trainable adapters and a frozen base; see ``base.load``."""
    method, card, dims = job.config.method, job.model.plugin.card, job.model.dims
    model = job.model.layer(precision_of(job).params)
    paths = targets.choose(card, dims, method.targets)
    rank, alpha = method.rank, method.alpha or 2.0 * method.rank
    scale = scale_of(alpha, rank, method.rslora)
    if method.base != FLOAT:
        quantize_base(model, targets.linears(card, dims), method.base)
    runtime.seed(job.config.train.seed)
    layers = add_lora(model, paths, rank, scale, method.dropout, method.dora)
    _check_magnitudes(layers)
    record = {**base_record(job), **({} if method.base == FLOAT else {"quantised": method.base})}
    blank = Adapter({}, method.rslora, method.dropout, short_name(job.model.folder), record)
    training = LoraTraining(layers, _principal(layers, start, job) if method.pissa else {}, blank, job)
    if start:
        training.restore(start)
    trainable = sum(p.size for p in model.parameters() if not p.stop_gradient)
    return Trainable(
        model=model,
        save=training.save,
        restore=training.restore,
        decays=lambda name: not name.endswith("lora_magnitude"),
        metadata={
            "trained_parameters": int(trainable),
            "trained_layers": len(paths),
            "weight_bytes": weight_bytes(model),
        },
        lr_scales=lambda name: method.lora_plus_ratio if name.endswith("lora_B") else 1.0,
        reference=training.without_adapter(model),
        save_extra=training.save_extra,
    )


def _check_magnitudes(layers: Mapping[str, Any]) -> None:
    """Checks that DoRA can learn the magnitudes of all columns: a column of zeros has no direction to scale.

    Raises:
        ConfigError: Names the layers that have such columns.
    """
    empty = [
        path
        for path, layer in layers.items()
        if layer.lora_magnitude is not None and not to_numpy(layer.lora_magnitude).all()
    ]
    if empty:
        raise ConfigError(
            f"method.dora: weights have columns of zeros, whose magnitudes cannot be learnt, in {', '.join(empty[:5])}"
            f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''}; leave these out of method.targets"
        )


def _parts(folder: Path, job: CheckedJob[Any]) -> Mapping[str, LoraWeights]:
    """The matrices of the adapter in a checkpoint of this run."""
    adapter = folders.read(folder, job.model.plugin, job.model.dims)
    assert isinstance(adapter, Adapter), "a checkpoint of this run is a low-rank adapter"
    return adapter.layers


def _starts(folder: Path, job: CheckedJob[Any]) -> dict[str, Start]:
    """What was subtracted from the base when the run of a checkpoint began."""
    if (folder / START).is_file():
        tensors = {name: read_tensor(info) for name, info in safetensors.read_header(folder / START).items()}
        return {name[:-2]: (array, tensors[f"{name[:-2]}.b"]) for name, array in tensors.items() if name.endswith(".a")}
    rank = job.config.method.rank
    return {path: (part.a[:, rank:], -part.b[rank:]) for path, part in _parts(folder, job).items()}


def _principal(layers: dict[str, Any], start: Path | None, job: CheckedJob[Any]) -> dict[str, Start]:
    """PiSSA: initialises adapters with the principal part of their base, which is subtracted; a resumed run subtracts what it did at its beginning."""
    before = _starts(start, job) if start else {}
    starts = {}
    for path, layer in layers.items():
        rank = layer.lora_A.shape[1]
        if path in before:
            a0, b0 = before[path]
        else:
            weight = to_numpy(layer.base.weight)
            a0, b0 = (x.astype(weight.dtype) for x in pissa_init(weight, rank, layer.scale))
        layer.subtract_from_base(a0, b0)
        magnitude = None if layer.lora_magnitude is None else to_numpy(layer.lora_magnitude)
        layer.set_weights(a0, b0, magnitude)
        starts[path] = a0, b0
    return starts

"""Training low-rank adapters beside layers that stand still. A checkpoint is an adapter's folder.

PiSSA is stored as a plain adapter of twice the rank, [A, A0] and [B, -B0], so that whoever reads it needs the base as it
is and nothing else: scale * (A B - A0 B0) is what the base has to be changed by. A checkpoint in a half type keeps A0 and B0
beside it as they were taken out of the base, over whose rest the run goes on.
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
from llmctl.adapters.adapter import Adapter, Part, scale_of
from llmctl.adapters.attach import put, quantise
from llmctl.adapters.peft_format import as_planned
from llmctl.adapters.peft_format import load as read_tensor
from llmctl.checkpoint.formats import safetensors
from llmctl.errors import ConfigError
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.precision import HALF
from llmctl.nn.arrays import to_numpy
from llmctl.nn.lora import pissa_init
from llmctl.quant.linear import weight_bytes
from llmctl.train.trainable.base import Reference, Subject, precision_of

FLOAT = "float"
"""Value of ``method.base`` that leaves the base as it is."""

START = "start.safetensors"
"""Holds A0 and B0 beside a checkpoint in a half type."""

Start = tuple[np.ndarray, np.ndarray]
"""A0 and B0 of a layer that began as its base's principal part."""


@dataclass(frozen=True)
class Trained:
    """The adapters of a model in training.

    Attributes:
        layers: Path -> ``nn.lora.LoraLinear``.
        starts: Path -> what was taken out of the base; empty without PiSSA.
        blank: An adapter without parts, with all else that is stored.
        job: The run's.
    """

    layers: dict[str, Any]
    starts: dict[str, Start]
    blank: Adapter
    job: CheckedJob[Any]

    def write(self, folder: Path, dtype: str) -> None:
        """Writes the adapter and the tokenizer into an existing folder."""
        parts = {path: self._part(path, layer) for path, layer in self.layers.items()}
        adapter = Adapter(parts, self.blank.rank_stabilised, self.blank.dropout, self.blank.base, self.blank.record)
        model = self.job.model
        folders.write(folder, adapter, model.plugin, model.dims, dtype)
        self.job.tokenizer.save(folder)
        folders.copy_generation(model.folder, folder)

    def write_more(self, folder: Path, dtype: str) -> None:
        """Writes unrounded what was taken out of the base, where ``write`` wrote it rounded."""
        if self.starts and dtype in HALF:
            arrays = {
                f"{path}.{name}": array
                for path, start in self.starts.items()
                for name, array in zip("ab", start, strict=True)
            }
            whole = {name: as_planned(name, array, array.dtype.name) for name, array in arrays.items()}
            safetensors.write_file(folder / START, whole)

    def read(self, folder: Path) -> None:
        """Takes over what ``write`` wrote."""
        parts = _parts(folder, self.job)
        for path, layer in self.layers.items():
            part, rank = parts[path], layer.lora_A.shape[1]
            layer.set_weights(part.a[:, :rank], part.b[:rank], part.magnitude)

    def at_rest(self, model: Any) -> Reference:
        """Makes the same layers compute what they did before training, while it is asked for."""

        def ready() -> Callable[[], AbstractContextManager[Any]]:
            for path, start in self.starts.items():
                self.layers[path].initial = tuple(paddle.to_tensor(part) for part in start)
            return opened

        @contextmanager
        def opened() -> Iterator[Any]:
            for layer in self.layers.values():
                layer.disabled = True
            try:
                yield model
            finally:
                for layer in self.layers.values():
                    layer.disabled = False

        return ready

    def _part(self, path: str, layer: Any) -> Part:
        a, b = to_numpy(layer.lora_A), to_numpy(layer.lora_B)
        if path in self.starts:
            a0, b0 = self.starts[path]
            a, b = np.concatenate([a, a0], axis=1), np.concatenate([b, -b0])
        magnitude = None if layer.lora_magnitude is None else to_numpy(layer.lora_magnitude)
        return Part(a, b, layer.scale, magnitude)


def load(job: CheckedJob[Any], start: Path | None) -> Subject:
    """The job's model with adapters in motion and all else at rest; see ``subject.load``."""
    method, card, dims = job.config.method, job.model.plugin.card, job.model.dims
    model = job.model.layer(precision_of(job).held)
    paths = targets.choose(card, dims, method.targets)
    rank, alpha = method.rank, method.alpha or 2.0 * method.rank
    scale = scale_of(alpha, rank, method.rslora)
    if method.base != FLOAT:
        quantise(model, targets.linears(card, dims), method.base)
    runtime.seed(job.config.train.seed)
    layers = put(model, paths, rank, scale, method.dropout, method.dora)
    _check_lengths(layers)
    record = {"base": job.base, **({} if method.base == FLOAT else {"quantised": method.base})}
    blank = Adapter({}, method.rslora, method.dropout, str(job.model.folder.resolve()), record)
    trained = Trained(layers, _principal(layers, start, job) if method.pissa else {}, blank, job)
    if start:
        trained.read(start)
    moving = sum(p.size for p in model.parameters() if not p.stop_gradient)
    return Subject(
        model=model,
        write=trained.write,
        read=trained.read,
        decays=lambda name: not name.endswith("lora_magnitude"),
        notes={
            "trained_parameters": int(moving),
            "trained_layers": len(paths),
            "weight_bytes": weight_bytes(model),
        },
        rates=lambda name: method.lora_plus_ratio if name.endswith("lora_B") else 1.0,
        reference=trained.at_rest(model),
        write_more=trained.write_more,
    )


def _check_lengths(layers: Mapping[str, Any]) -> None:
    """Passes when no column of a weight whose lengths are learnt is zero: it has no direction that a length could scale.

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
            f"method.dora: weights have columns of zeros, whose lengths cannot be learnt, in {', '.join(empty[:5])}"
            f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''}; leave these out of method.targets"
        )


def _parts(folder: Path, job: CheckedJob[Any]) -> Mapping[str, Part]:
    """The parts of the adapter in a checkpoint of this run."""
    adapter = folders.read(folder, job.model.plugin, job.model.dims)
    assert isinstance(adapter, Adapter), "a checkpoint of this run is a low-rank adapter"
    return adapter.parts


def _starts(folder: Path, job: CheckedJob[Any]) -> dict[str, Start]:
    """What was taken out of the base when the run of a checkpoint began."""
    if (folder / START).is_file():
        tensors = {name: read_tensor(info) for name, info in safetensors.read_header(folder / START).items()}
        return {name[:-2]: (array, tensors[f"{name[:-2]}.b"]) for name, array in tensors.items() if name.endswith(".a")}
    rank = job.config.method.rank
    return {path: (part.a[:, rank:], -part.b[rank:]) for path, part in _parts(folder, job).items()}


def _principal(layers: dict[str, Any], start: Path | None, job: CheckedJob[Any]) -> dict[str, Start]:
    """Puts the principal part of each base into its adapter, the rest stays; where a run began, when it is continued."""
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

"""LoRA: trainable low-rank adapters and a frozen base. A checkpoint is the folder of an adapter.

PiSSA is saved as a plain adapter of twice the rank, [A, A0] and [B, -B0], which is used with the unchanged base: the weights
change by scale * (A B - A0 B0). A checkpoint in a half type has A0 and B0 unrounded too, since the run resumes from the base
without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.adapters import folder as folders
from llmctl.adapters import targets
from llmctl.adapters.adapter import Adapter, LoraWeights, scale_of
from llmctl.adapters.attach import add_lora, quantize_base
from llmctl.adapters.base_model import short_name
from llmctl.adapters.peft_weights import as_planned
from llmctl.adapters.peft_weights import load as read_tensor
from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.checkpoint.formats import safetensors
from llmctl.checkpoint.formats.dtypes import cast
from llmctl.checkpoint.load import dtype_name
from llmctl.errors import ConfigError
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.precision import HALF
from llmctl.jobs.quantized_base import FLOAT
from llmctl.nn.arrays import to_numpy
from llmctl.nn.lora import first_a, pissa_init
from llmctl.quant.linear import weight_bytes
from llmctl.train.optim.slices import needed
from llmctl.train.place import HERE, Place
from llmctl.train.trainable.base import Reference, State, Trainable, base_record, precision_of

INITIAL = ("initial_A", "initial_B")
"""Parameters of a layer that hold A0 and B0."""

START = "start.safetensors"
"""The file of A0 and B0 in a checkpoint in a half type."""


@dataclass(frozen=True)
class LoraTraining:
    """The trainable adapters of a model.

    Attributes:
        paths: Paths of all layers that have one.
        layers: Path -> ``nn.lora.LoraLinear``, of those that this rank has.
        modules: Names of the parameters that are trained whole beside the adapters.
        model: This rank's part of the model.
        scale: Scale of A B.
        blank: The adapter to save, still without its matrices.
        job: The job of the run.
        place: Which part of the model this rank has.
    """

    paths: Sequence[str]
    layers: dict[str, Any]
    modules: Sequence[str]
    model: Any
    scale: float
    blank: Adapter
    job: CheckedJob[Any]
    place: Place

    def save(self, folder: Path, dtype: str, state: State) -> None:
        """Writes the adapter and the tokenizer into an existing folder."""
        parts = {path: self._part(path, state) for path in self.paths}
        adapter = replace(self.blank, layers=parts, tensors={name: state[name] for name in self.modules})
        model = self.job.model
        folders.write(folder, adapter, model.plugin, model.dims, dtype)
        self.job.tokenizer.save(folder)
        folders.copy_generation(model.folder, folder)

    def save_extra(self, folder: Path, dtype: str, state: State) -> None:
        """Adds A0 and B0 unrounded to a checkpoint whose ``save`` rounded them."""
        if self.job.config.method.pissa and dtype in HALF:
            arrays = {
                f"{path}.{name}": to_numpy(state[f"{path}.{parameter}"])
                for path in self.paths
                for name, parameter in zip("ab", INITIAL, strict=True)
            }
            whole = {name: as_planned(name, array, array.dtype.name) for name, array in arrays.items()}
            safetensors.write_file(folder / START, whole)

    def restore(self, folder: Path) -> None:
        """Reads what ``save`` wrote."""
        adapter = _stored(folder, self.job)
        self._restore_modules(adapter.tensors)
        parts = adapter.layers
        for path, layer in self.layers.items():
            part, rank = parts[path], layer.lora_A.shape[1]
            with needed(layer):
                self._set(path, layer, part.a[:, :rank], part.b[:rank], part.magnitude)

    def _restore_modules(self, stored: Mapping[str, Any]) -> None:
        here, layers = dict(self.model.named_parameters()), dict(self.model.named_sublayers())
        for name in self.modules:
            if name in here:
                values = cast(stored[name].numpy(), stored[name].dtype, dtype_name(here[name]))
                with needed(layers[name.rpartition(".")[0]]):
                    self.place.set(name, here[name], values)

    def _set(self, path: str, layer: Any, a: np.ndarray, b: np.ndarray, magnitude: np.ndarray | None) -> None:
        """Sets this rank's parts of whole matrices."""
        cut = self.place.cut
        own = None if magnitude is None else cut.part(f"{path}.lora_magnitude", magnitude)
        layer.set_weights(cut.part(f"{path}.lora_A", a), cut.part(f"{path}.lora_B", b), own)

    def without_adapter(self, model: Any) -> Reference:
        """The same layers with their adapters disabled, which serve as the reference of preference optimization."""

        def prepare() -> Callable[[], AbstractContextManager[Any]]:
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

    def _part(self, path: str, state: State) -> LoraWeights:
        def read(name: str) -> np.ndarray:
            return to_numpy(state[f"{path}.{name}"])

        a, b = read("lora_A"), read("lora_B")
        if self.job.config.method.pissa:
            a0, b0 = map(read, INITIAL)
            a, b = np.concatenate([a, a0], axis=1), np.concatenate([b, -b0])
        return LoraWeights(a, b, self.scale, read("lora_magnitude") if self.job.config.method.dora else None)

    def begin(self, start: Path | None) -> None:
        """Gives the adapters their initial values, or those of the checkpoint that the run continues from."""
        seed = self.job.config.train.seed
        for path, layer in self.layers.items():
            name = f"{path}.lora_A"
            inputs = self.place.cut.whole_shape(name, layer.lora_A.shape)[0]
            self.place.draw(name, layer.lora_A, first_a(inputs), seed)
        if self.job.config.method.pissa:
            self._subtract(_starts(start, self.job) if start else self._principal())
        if start:
            self.restore(start)

    def _principal(self) -> dict[str, Start]:
        """Path -> A and B of the principal part of its base. Each of the ranks that have a layer computes those of some layers."""
        found: dict[str, Start] = {}
        for group in batched(self.layers.items(), self.place.copies):
            own = None
            for owner, (path, layer) in enumerate(group):
                weight = self._weight(path, layer)
                if owner == self.place.copy:
                    own = weight, layer.lora_A.shape[1]
            a, b = (None, None) if own is None else map(np.ascontiguousarray, pissa_init(*own, self.scale))
            for owner, (path, _) in enumerate(group):
                found[path] = self.place.broadcast(a, owner), self.place.broadcast(b, owner)
        return found

    def _weight(self, path: str, layer: Any) -> np.ndarray:
        with needed(layer.base):
            return self.place.whole(f"{path}.weight", layer.base.weight)

    def _subtract(self, starts: Mapping[str, Start]) -> None:
        """PiSSA: adapters begin as a part of their base, which is subtracted from it."""
        cut = self.place.cut
        for path, layer in self.layers.items():
            a, b = starts[path]
            with needed(layer.base):
                layer.subtract_from_base(cut.part(f"{path}.lora_A", a), cut.part(f"{path}.lora_B", b))
            magnitude = None if layer.lora_magnitude is None else to_numpy(layer.lora_magnitude)
            layer.set_weights(to_numpy(layer.initial_A), to_numpy(layer.initial_B), magnitude)


Start = tuple[np.ndarray, np.ndarray]
"""A0 and B0 of a layer whose adapter was initialized with the principal part of its base."""


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items, so many at a time."""
    items = list(items)
    return (items[first : first + size] for first in range(0, len(items), size))


def load(job: CheckedJob[Any], start: Path | None, place: Place = HERE) -> Trainable:
    """Loads the job's model with trainable adapters and a frozen base; see ``base.load``."""
    method, card, dims = job.config.method, job.model.plugin.card, job.model.dims
    model = _base(job, place)
    paths = targets.choose(card, dims, method.targets)
    rank, alpha = method.rank, method.alpha or 2.0 * method.rank
    scale = scale_of(alpha, rank, method.rslora)
    here = dict(model.named_sublayers())
    place.cut_adapters(paths)
    held = [path for path in paths if path in here]
    layers = add_lora(model, held, rank, scale, method.dropout, method.dora, place.totals(held), needed)
    _check_magnitudes(layers)
    whole = {tensor.name: tensor for tensor in targets.modules_to_save(job.model.plugin, dims, method.modules_to_save)}
    for name, parameter in model.named_parameters():
        if name in whole:
            parameter.stop_gradient = False
    record = {**base_record(job), **({} if method.base == FLOAT else {"quantised": method.base})}
    blank = Adapter({}, method.rslora, method.dropout, short_name(job.model.folder), record)
    training = LoraTraining(paths, layers, list(whole), model, scale, blank, job, place)
    training.begin(start)
    return Trainable(
        model=model,
        save=training.save,
        restore=training.restore,
        decays=lambda name: not name.endswith("lora_magnitude") and _is_matrix(whole.get(name)),
        metadata={
            "trained_parameters": _trained(card, dims, paths, rank, method.dora) + sum(t.size for t in whole.values()),
            "trained_layers": len(paths),
            "weight_bytes": weight_bytes(model),
        },
        lr_scales=lambda name: method.lora_plus_ratio if name.endswith("lora_B") else 1.0,
        # Layers without their adapters are no reference where others are trained too.
        reference=partial(_frozen_copy, job, place) if whole else training.without_adapter(model),
        save_extra=training.save_extra,
        place=place,
    )


def _base(job: CheckedJob[Any], place: Place) -> Any:
    """This rank's part of the base, quantized if the job asks for it."""
    method = job.config.method
    model = place.layer(job.model, precision_of(job).params)
    if method.base != FLOAT:
        here = dict(model.named_sublayers())
        linears = filter(here.__contains__, targets.linears(job.model.plugin.card, job.model.dims))
        quantize_base(model, linears, method.base, needed, place.keep)
    return model


def _frozen_copy(job: CheckedJob[Any], place: Place) -> Callable[[], AbstractContextManager[Any]]:
    """The base once more, as the reference of preference optimization."""
    model = _base(job, place)
    place.connect(model, job.model)
    place.freeze(model)
    return lambda: nullcontext(model)


def _is_matrix(tensor: Tensor | None) -> bool:
    """Whether a tensor that is trained whole has weight decay; adapters, which are no such tensors, have it."""
    return tensor is None or tensor.kind not in ("norm", "bias")


def _trained(card: Family, dims: Dims, paths: Iterable[str], rank: int, dora: bool) -> int:
    """Number of trained parameters of all ranks together."""
    shapes = [targets.linears(card, dims)[path].shape for path in paths]
    return sum(rank * (inputs + outputs) + dora * outputs for inputs, outputs in shapes)


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
            f"method.dora: weights have columns of zeros, whose magnitudes cannot be learned, in {', '.join(empty[:5])}"
            f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''}; leave these out of method.targets"
        )


def _stored(folder: Path, job: CheckedJob[Any]) -> Adapter:
    """The adapter in a checkpoint of this run."""
    adapter = folders.read(folder, job.model.plugin, job.model.dims)
    assert isinstance(adapter, Adapter), "a checkpoint of this run is a low-rank adapter"
    return adapter


def _starts(folder: Path, job: CheckedJob[Any]) -> dict[str, Start]:
    """What was subtracted from the base when the run of a checkpoint began."""
    if (folder / START).is_file():
        tensors = {name: read_tensor(info) for name, info in safetensors.read_header(folder / START).items()}
        return {name[:-2]: (array, tensors[f"{name[:-2]}.b"]) for name, array in tensors.items() if name.endswith(".a")}
    rank = job.config.method.rank
    return {path: (part.a[:, rank:], -part.b[rank:]) for path, part in _stored(folder, job).layers.items()}

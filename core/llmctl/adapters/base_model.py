"""The base model of an adapter: finding its folder, and checking that it is the model that the adapter was trained on.

A base is identified by the names and shapes of its tensors and by a few values of each linear weight, rounded to bfloat16;
copies in another layout or a narrower data type therefore count as the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.adapters import targets
from llmctl.card.dims import Dims
from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint import slices
from llmctl.checkpoint.build import CheckedModel
from llmctl.checkpoint.formats.dtypes import STORAGE, cast, round_bfloat16
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.checkpoint.hf_config import NAME as CONFIG
from llmctl.checkpoint.load import group_by_target
from llmctl.checkpoint.locate import locate
from llmctl.checkpoint.naming import detect_layout
from llmctl.checkpoint.quantized import open_weights
from llmctl.errors import CheckpointError, LlmctlError
from llmctl.hub.name import parse
from llmctl.hub.origin import origin

CORNER = 4
"""Rows and columns of each linear weight that identify the base."""


def record(base: Path, plugin: Any, dims: Dims, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The identity of a base model: family, hash of the card, hashes of tensor shapes and of some values.

    Args:
        base: Folder of the model.
        plugin: Plugin of its family.
        dims: Dims of the model.
        state: Name on the card -> tensor with ``dtype`` and ``numpy()``, if the folder does not hold the tensors.
    """
    if state is not None:
        return _record(base, plugin, dims, _state_hash(state, plugin, dims))
    tensors = open_weights(base, plugin.card, dims).tensors
    _, mappings = detect_layout(tensors, plugin, dims)
    return _record(base, plugin, dims, _values_hash(tensors, mappings, plugin, dims))


def record_of(model: CheckedModel) -> dict[str, Any]:
    """``record`` of a model whose weights are already opened."""
    assert model.weights, "a new model cannot be a base"
    values = _values_hash(model.weights.tensors, model.mappings, model.plugin, model.dims)
    return _record(model.weights.path, model.plugin, model.dims, values)


def _record(base: Path, plugin: Any, dims: Dims, values_hash: str) -> dict[str, Any]:
    shapes = {tensor.name: list(tensor.shape) for tensor in plugin.card.expand(dims)}
    return {
        "family": plugin.card.name,
        "card_hash": plugin.card.hash(),
        "path": name_of(base),
        "tensors": len(shapes),
        "shapes_hash": _digest(json.dumps(sorted(shapes.items())).encode()),
        "values_hash": values_hash,
    }


def check(
    recorded: Mapping[str, Any],
    base: Path,
    plugin: Any,
    dims: Dims,
    allow_other: bool = False,
    actual: Mapping[str, Any] | None = None,
) -> None:
    """Checks that a model is the recorded base.

    Args:
        recorded: Result of ``record`` at training; empty = unknown, every model passes.
        base: Folder of the model.
        plugin: Plugin of its family.
        dims: Dims of the model.
        allow_other: Whether to allow other values in tensors of the same shapes.
        actual: Result of ``record`` for the model; None = computed from its folder.

    Raises:
        CheckpointError: The model has another family, other tensors or other values.
    """
    if not recorded:
        return
    if recorded.get("family") != plugin.card.name:
        raise CheckpointError(
            f"the adapter was trained on a {recorded.get('family')} model, but {base} is a {plugin.card.name} model"
        )
    actual = record(base, plugin, dims) if actual is None else actual
    if recorded.get("shapes_hash") != actual["shapes_hash"]:
        raise CheckpointError(
            f"{base} is not the adapter's base: it has {actual['tensors']} tensors, shapes {actual['shapes_hash']}; "
            f"the base had {recorded.get('tensors')}, shapes {recorded.get('shapes_hash')}. Give the right one with --base"
        )
    if recorded.get("values_hash") != actual["values_hash"] and not allow_other:
        raise CheckpointError(
            f"{base} has the shapes of the adapter's base but other weights: values {actual['values_hash']}, the base had "
            f"{recorded.get('values_hash')} and was {recorded.get('path')}. Give the right one with --base, or allow this "
            "one with --allow-other-base"
        )


def same(recorded: Mapping[str, Any], actual: Mapping[str, Any]) -> bool:
    """Whether two results of ``record`` are of the same tensors with the same values, in any folder."""
    return all(recorded.get(key) == actual[key] for key in ("shapes_hash", "values_hash"))


def name_of(base: Path) -> str:
    """What an adapter calls its base model: its name and commit on a hub that it was downloaded from, else its folder."""
    return str(origin(base) or base.resolve())


def short_name(base: Path) -> str:
    """What PEFT calls the base model, which has no place for a commit: its name on a hub, else its folder."""
    found = origin(base)
    if found is None:
        return str(base.resolve())
    return str(replace(found, revision="")) if found.choice else found.repo


def find(named: str, folder: Path, given: Path | None) -> Path:
    """The folder of an adapter's base: the given one, else the recorded one.

    Args:
        named: Recorded base; a relative path is searched in the folder of the adapter, then in the current folder, then on a
            hub.
        folder: Folder of the adapter.
        given: Folder or name given by the user.

    Raises:
        LlmctlError: The base is not found, or cannot be downloaded.
    """
    if given is not None:
        return locate(given)
    for path in (folder / named, Path(named)) if named else ():
        # A name that no file can have is one that does not exist.
        if os.path.isfile(path / CONFIG):
            return path
    if named and parse(named):
        try:
            return locate(named)
        except LlmctlError as error:
            raise CheckpointError(
                f"{folder}: the base model {named} of this adapter is missing: {error}. Or give its folder with --base"
            ) from error
    if named:
        raise CheckpointError(
            f"{folder}: the base model {named} of this adapter is missing; give its folder with --base"
        )
    raise CheckpointError(f"{folder}: this adapter does not record its base model; give its folder with --base")


def _values_hash(tensors: Mapping[str, TensorInfo], mappings: Sequence[WeightMapping], plugin: Any, dims: Dims) -> str:
    known = targets.linears(plugin.card, dims)
    digest = hashlib.sha256()
    for target, sources in sorted(group_by_target(tensors, mappings).items()):
        path = targets.module_of(target)
        if path in known:
            digest.update(_corner(sources, known[path].shape).tobytes())
    return digest.hexdigest()[:16]


def _state_hash(state: Mapping[str, Any], plugin: Any, dims: Dims) -> str:
    """``_values_hash`` of tensors that are not in a folder."""
    digest = hashlib.sha256()
    for name in sorted(tensor.name for tensor in targets.linears(plugin.card, dims).values()):
        corner = cast(state[name].numpy()[:CORNER, :CORNER], state[name].dtype, "float32")
        digest.update(round_bfloat16(np.ascontiguousarray(corner)).tobytes())
    return digest.hexdigest()[:16]


def _corner(sources: list[slices.MappedTensor], shape: tuple[int, ...]) -> Any:
    """The first inputs and outputs of a linear weight [CORNER, CORNER] as bfloat16."""
    info, mapping = sources[0]
    if slices.is_row_range(mapping, len(info.shape)):
        rows = np.empty((min(CORNER, shape[int(mapping.transpose)]), *info.shape[1:]), STORAGE["float32"])
        info.read_into(rows, "float32", start=slices.first_row(mapping, shape))
        corner = rows[:, :CORNER].T if mapping.transpose else rows[:, :CORNER]
    else:
        whole = np.empty(shape, STORAGE["float32"])
        slices.fill(whole, sources, "float32")
        corner = whole[:CORNER, :CORNER]
    return round_bfloat16(np.ascontiguousarray(corner))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

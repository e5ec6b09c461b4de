"""The base of an adapter: where it lies, and whether it is the model that the adapter was trained on.

A base is recognised by the names and shapes of its tensors and by a few values of each linear, rounded to bfloat16, so
that copies in another layout or a narrower type count as the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.adapters import targets
from llmctl.card.dims import Dims
from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint import slices
from llmctl.checkpoint.build import CheckedModel
from llmctl.checkpoint.folder import open_folder
from llmctl.checkpoint.formats.dtypes import STORAGE, cast, round_bfloat16
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.checkpoint.hf_config import NAME as CONFIG
from llmctl.checkpoint.load import by_target
from llmctl.checkpoint.naming import recognise
from llmctl.errors import CheckpointError

CORNER = 4
"""So many rows and columns of each linear are looked at."""


def record(base: Path, plugin: Any, dims: Dims, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What to note of a base: family, the card's hash, and hashes of its tensors' shapes and of some of its values.

    Args:
        base: Its folder.
        plugin: Its family.
        dims: Its dims.
        state: Its tensors by their names on the card, where they are not those of the folder: anything with ``dtype`` and
            ``numpy()``.
    """
    if state is not None:
        return _record(base, plugin, dims, _state_hash(state, plugin, dims))
    tensors = open_folder(base).tensors
    _, renames = recognise(tensors, plugin, dims)
    return _record(base, plugin, dims, _values_hash(tensors, renames, plugin, dims))


def record_of(model: CheckedModel) -> dict[str, Any]:
    """As `record`, of a model from a folder whose weights are opened already."""
    assert model.weights, "a new model is the base of nothing"
    values = _values_hash(model.weights.tensors, model.renames, model.plugin, model.dims)
    return _record(model.weights.path, model.plugin, model.dims, values)


def _record(base: Path, plugin: Any, dims: Dims, values_hash: str) -> dict[str, Any]:
    shapes = {tensor.name: list(tensor.shape) for tensor in plugin.card.expand(dims)}
    return {
        "family": plugin.card.name,
        "card_hash": plugin.card.hash(),
        "path": str(base.resolve()),
        "tensors": len(shapes),
        "shapes_hash": _digest(json.dumps(sorted(shapes.items())).encode()),
        "values_hash": values_hash,
    }


def check(
    noted: Mapping[str, Any],
    base: Path,
    plugin: Any,
    dims: Dims,
    allow_other: bool = False,
    now: Mapping[str, Any] | None = None,
) -> None:
    """Passes when a folder is the base that was noted.

    Args:
        noted: From `record`; empty = nothing is known and everything passes.
        base: The folder.
        plugin: Its family.
        dims: Its dims.
        allow_other: Whether other values may stand in tensors of the same shapes.
        now: From `record`, where the folder does not hold the tensors themselves; None = they are looked at.

    Raises:
        CheckpointError: It is another family's, has other tensors, or other values.
    """
    if not noted:
        return
    if noted.get("family") != plugin.card.name:
        raise CheckpointError(
            f"the adapter belongs to a model of {noted.get('family')}, {base} is of {plugin.card.name}"
        )
    now = record(base, plugin, dims) if now is None else now
    if noted.get("shapes_hash") != now["shapes_hash"]:
        raise CheckpointError(
            f"{base} is not the adapter's base: it has {now['tensors']} tensors, shapes {now['shapes_hash']}; "
            f"the base had {noted.get('tensors')}, shapes {noted.get('shapes_hash')}. Name the right one with --base"
        )
    if noted.get("values_hash") != now["values_hash"] and not allow_other:
        raise CheckpointError(
            f"{base} has the shapes of the adapter's base but other weights: values {now['values_hash']}, the base had "
            f"{noted.get('values_hash')} and was {noted.get('path')}. Name the right one with --base, or use this one "
            "knowingly with --allow-other-base"
        )


def same(noted: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two notes are of the same tensors with the same values, wherever they lie; both from `record`."""
    return all(noted.get(key) == now[key] for key in ("shapes_hash", "values_hash"))


def find(named: str, folder: Path, given: Path | None) -> Path:
    """The folder of an adapter's base: the one given, else the one that the adapter names.

    Args:
        named: What the adapter names; a relative path is looked for beside the adapter, then here.
        folder: The adapter's folder.
        given: From the command line.

    Raises:
        CheckpointError: It is not there.
    """
    if given is not None:
        return given
    for path in (folder / named, Path(named)) if named else ():
        if (path / CONFIG).is_file():
            return path
    reason = (
        f"its base {named} is not there; if it was moved, name it" if named else "it does not name its base; name it"
    )
    raise CheckpointError(f"{folder} is an adapter and {reason} with --base FOLDER")


def _values_hash(tensors: Mapping[str, TensorInfo], renames: Sequence[WeightMapping], plugin: Any, dims: Dims) -> str:
    known = targets.linears(plugin.card, dims)
    digest = hashlib.sha256()
    for target, sources in sorted(by_target(tensors, renames).items()):
        path = targets.module_of(target)
        if path in known:
            digest.update(_corner(sources, known[path].shape).tobytes())
    return digest.hexdigest()[:16]


def _state_hash(state: Mapping[str, Any], plugin: Any, dims: Dims) -> str:
    """As `_values_hash`, of tensors that lie in no folder."""
    digest = hashlib.sha256()
    for name in sorted(tensor.name for tensor in targets.linears(plugin.card, dims).values()):
        corner = cast(state[name].numpy()[:CORNER, :CORNER], state[name].dtype, "float32")
        digest.update(round_bfloat16(np.ascontiguousarray(corner)).tobytes())
    return digest.hexdigest()[:16]


def _corner(sources: list[slices.Source], shape: tuple[int, ...]) -> Any:
    """The first inputs and outputs of a linear [CORNER, CORNER] as bfloat16."""
    info, rename = sources[0]
    if slices.in_rows(rename, len(info.shape)):
        rows = np.empty((min(CORNER, shape[int(rename.transpose)]), *info.shape[1:]), STORAGE["float32"])
        info.read_into(rows, "float32", start=slices.first_row(rename, shape))
        corner = rows[:, :CORNER].T if rename.transpose else rows[:, :CORNER]
    else:
        whole = np.empty(shape, STORAGE["float32"])
        slices.fill(whole, sources, "float32")
        corner = whole[:CORNER, :CORNER]
    return round_bfloat16(np.ascontiguousarray(corner))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

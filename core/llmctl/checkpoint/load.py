"""Weights from a folder into a layer: everything is checked on headers first, then streamed tensor by tensor.

Memory: the layer, plus the largest tensor in the layer's dtype. Which name goes where is given by renames (a family's
``weight_map``); finding and parsing the files is the matter of ``folder.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.card.weight_map import TensorSlice, WeightMapping
from llmctl.checkpoint.folder import WeightFolder, open_folder
from llmctl.checkpoint.formats.dtypes import FLOATS, STORAGE
from llmctl.checkpoint.formats.tensor_info import CHUNK_BYTES, TensorInfo
from llmctl.checkpoint.slices import Source, complete, fill, source_shape
from llmctl.errors import CheckpointError
from llmctl.io.json_object import read_json

IGNORED = ("*.rotary_emb.inv_freq",)
"""Tensors in torch files that hold no weights: tables that every model recomputes."""

TIED_HEADS = ("lm_head.weight", "lm_head.decoder_weight")
"""Output heads that some files repeat although the model shares the input embedding."""

TIED = "tie_word_embeddings"

_LISTED = 10


@dataclass(frozen=True)
class Expected:
    """What a tensor has to be, for a check before there is one."""

    shape: tuple[int, ...]
    dtype: str


def load_weights(
    folder: WeightFolder | str | Path,
    layer: Any,
    renames: Sequence[WeightMapping],
    allow_missing: Iterable[str] = (),
    ignored: Iterable[str] = (),
) -> list[str]:
    """Fills a ``paddle.nn.Layer`` from a folder, cast to each parameter's dtype.

    Args:
        folder: The weights, opened or not.
        layer: The model; its state dict must be what ``renames`` cover.
        renames: Source in the folder and target in the layer, one for every tensor of the layer.
        allow_missing: Sources (names in the folder) that may be absent; their targets keep their initial values.
        ignored: Patterns of tensors in the folder that are passed over, beside ``IGNORED``.

    Returns:
        The targets that kept their initial values.

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape; one message lists them all, and nothing
            has been loaded. Or a file ends early.
        ValueError: The renames do not cover the layer.
    """
    folder = folder if isinstance(folder, WeightFolder) else open_folder(folder)
    check_weights(folder, layer.state_dict(), renames, allow_missing, ignored)
    return fill_layer(layer, folder.tensors, renames)


def fill_layer(layer: Any, tensors: Mapping[str, TensorInfo], renames: Sequence[WeightMapping]) -> list[str]:
    """Fills a ``paddle.nn.Layer`` from tensors that passed `check_weights`, cast to each parameter's dtype.

    Args:
        layer: The model.
        tensors: Of an opened folder, by name.
        renames: As for `load_weights`.

    Returns:
        The targets that kept their initial values, because a source is absent.

    Raises:
        CheckpointError: A file ends early.
    """
    state = layer.state_dict()
    kept = {rename.target for rename in renames if rename.source not in tensors}
    for target, sources in by_target(tensors, renames).items():
        if target not in kept:
            dtype = dtype_name(state[target])
            values = np.empty(tuple(state[target].shape), STORAGE[dtype])
            fill(values, sources, dtype)
            state[target].set_value(values)
    return [target for target in dict.fromkeys(rename.target for rename in renames) if target in kept]


def by_target(tensors: Mapping[str, TensorInfo], renames: Sequence[WeightMapping]) -> dict[str, list[Source]]:
    """For each target the tensors of a folder that it is filled from."""
    found: dict[str, list[Source]] = {}
    for rename in renames:
        if rename.source in tensors:
            found.setdefault(rename.target, []).append((tensors[rename.source], rename))
    return found


def check_weights(
    folder: WeightFolder,
    expected: Mapping[str, Any],
    renames: Sequence[WeightMapping],
    allow_missing: Iterable[str] = (),
    ignored: Iterable[str] = (),
) -> None:
    """Passes when `load_weights` can fill tensors of these shapes and dtypes; from headers, before there is a layer.

    Args:
        folder: The weights.
        expected: Target name -> anything with ``shape`` and ``dtype``.
        renames: As for `load_weights`, which raises the same errors.
        allow_missing: As for `load_weights`.
        ignored: As for `load_weights`.

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape or dtype.
        ValueError: The renames do not cover the layer.
    """
    _check_cover(expected, renames)
    allowed = set(allow_missing)
    problems = [
        *_unknown_allowed(allowed, renames),
        *_missing(folder, renames, allowed),
        *_unexpected(folder, renames, (*IGNORED, *ignored)),
        *_misfits(folder, expected, renames),
    ]
    if problems:
        raise CheckpointError("\n  ".join([f"the weights in {folder.path} do not fit the model:", *problems]))


def dtype_name(tensor: Any) -> str:
    """The dtype of a paddle tensor or numpy array as named in ``dtypes.STORAGE``."""
    return str(tensor.dtype).rpartition(".")[2]


def _check_cover(state: Mapping[str, Any], renames: Sequence[WeightMapping]) -> None:
    places: dict[str, list[TensorSlice | None]] = {}
    for rename in renames:
        places.setdefault(rename.target, []).append(rename.dst_slice)
    odd = sorted({*(set(places) ^ set(state)), *(name for name, parts in places.items() if not complete(parts))})
    if odd:
        raise ValueError(f"the renames do not cover the layer's tensors once each: {', '.join(odd[:_LISTED])}")


def _unknown_allowed(allowed: set[str], renames: Sequence[WeightMapping]) -> list[str]:
    unknown = allowed - {rename.source for rename in renames}
    return _listing("allowed to be missing, but not in the model's weight map", sorted(unknown))


def _missing(folder: WeightFolder, renames: Sequence[WeightMapping], allowed: set[str]) -> list[str]:
    sources = dict.fromkeys(rename.source for rename in renames)
    missing = [name for name in sources if name not in folder.tensors and name not in allowed]
    return _listing("missing", [_why_expected(folder, name) for name in missing])


def _why_expected(folder: WeightFolder, name: str) -> str:
    if name not in TIED_HEADS or TIED in read_json(folder.path / "config.json"):
        return name
    return f"{name} (config.json has no {TIED}, which the family reads as false; set it to true if the head is the embedding)"


def _unexpected(folder: WeightFolder, renames: Sequence[WeightMapping], ignored: Sequence[str]) -> list[str]:
    sources = {rename.source for rename in renames}
    unexpected = [
        name
        for name in folder.tensors
        if name not in sources and not any(fnmatchcase(name, pattern) for pattern in ignored)
    ]
    copies = [name for name in unexpected if name in TIED_HEADS and _repeats_embedding(folder, name, renames)]
    return _listing("unexpected", [_explain(name) for name in unexpected if name not in copies])


def _explain(name: str) -> str:
    if name not in TIED_HEADS:
        return name
    return f"{name} (the config ties the head to the embedding, but the two differ; set tie_word_embeddings to false)"


def _repeats_embedding(folder: WeightFolder, head: str, renames: Sequence[WeightMapping]) -> bool:
    info = folder.tensors[head]
    sources = {r.source for r in renames if not r.transpose and not r.src_slice and r.source in folder.tensors}
    candidates = (folder.tensors[name] for name in sorted(sources))
    return any(_equal(info, other) for other in candidates if (other.shape, other.dtype) == (info.shape, info.dtype))


def _equal(left: TensorInfo, right: TensorInfo) -> bool:
    storage = STORAGE[left.dtype]
    step = max(1, CHUNK_BYTES // max(1, prod(left.shape[1:]) * storage.itemsize))
    for start in range(0, left.shape[0], step):
        rows = (min(step, left.shape[0] - start), *left.shape[1:])
        first, second = np.empty(rows, storage), np.empty(rows, storage)
        left.read_into(first, left.dtype, start)
        right.read_into(second, right.dtype, start)
        if first.tobytes() != second.tobytes():
            return False
    return True


def _misfits(folder: WeightFolder, state: Mapping[str, Any], renames: Sequence[WeightMapping]) -> list[str]:
    shapes, dtypes = {}, {}
    for rename in renames:
        if rename.source not in folder.tensors:
            continue
        info, parameter = folder.tensors[rename.source], state[rename.target]
        expected = source_shape(tuple(parameter.shape), rename)
        if info.shape != expected:
            shapes[rename.source] = f"{rename.source} is {list(info.shape)}, expected {list(expected)}"
        target = dtype_name(parameter)
        if info.dtype != target and (info.dtype not in FLOATS or target not in FLOATS):
            dtypes[rename.source] = f"{rename.source} is {info.dtype}, expected {target}"
    return _listing("of another shape", list(shapes.values())) + _listing("of another dtype", list(dtypes.values()))


def _listing(what: str, rows: Sequence[str]) -> list[str]:
    if not rows:
        return []
    more = f"; and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    return [f"{len(rows)} {'tensor' if len(rows) == 1 else 'tensors'} {what}: {'; '.join(rows[:_LISTED])}{more}"]

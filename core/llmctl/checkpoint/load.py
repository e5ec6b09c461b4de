"""Loads weights from a folder into a layer: checks all headers first, then streams tensor by tensor.

Memory: the layer, plus its largest tensor. The weight mappings of a family (hook ``weight_map``) say which tensor goes
where; ``folder`` finds and parses the files.
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
from llmctl.checkpoint.partial import WHOLE, Cut, Done, nothing
from llmctl.checkpoint.slices import MappedTensor, covers_axis, source_shape
from llmctl.errors import CheckpointError
from llmctl.io.json_object import read_json
from llmctl.io.progress import Progress
from llmctl.quant.formats.config import MARKERS

IGNORED_TENSORS = ("*.rotary_emb.inv_freq",)
"""Patterns of tensors in torch files that are not weights: tables that models recompute."""

TIED_HEADS = ("lm_head.weight", "lm_head.decoder_weight")
"""LM heads that some files repeat although they are tied to the embedding."""

TIED = "tie_word_embeddings"

_LISTED = 10


@dataclass(frozen=True)
class Expected:
    """Expected shape and data type of a tensor, to check before there is a layer."""

    shape: tuple[int, ...]
    dtype: str


def load_weights(
    folder: WeightFolder | str | Path,
    layer: Any,
    mappings: Sequence[WeightMapping],
    allow_missing: Iterable[str] = (),
    ignored: Iterable[str] = (),
) -> list[str]:
    """Loads a folder into a ``paddle.nn.Layer``, cast to the data type of each parameter.

    Args:
        folder: The weights, opened or not.
        layer: The model.
        mappings: Source in the folder and target in the layer, for every tensor in the state dict of the layer.
        allow_missing: Sources (names in the folder) that may be missing; their targets keep their initial values.
        ignored: Patterns of tensors in the folder to ignore, in addition to ``IGNORED_TENSORS``.

    Returns:
        The targets that kept their initial values.

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape; the message lists all, and nothing was
            loaded. Or a file is truncated.
        ValueError: The mappings do not cover the layer.
    """
    folder = folder if isinstance(folder, WeightFolder) else open_folder(folder)
    check_weights(folder, layer.state_dict(), mappings, allow_missing, ignored)
    return fill_layer(layer, folder.tensors, mappings)


def fill_layer(
    layer: Any,
    tensors: Mapping[str, TensorInfo],
    mappings: Sequence[WeightMapping],
    cut: Cut = WHOLE,
    done: Done = nothing,
) -> list[str]:
    """Loads tensors that passed ``check_weights`` into a ``paddle.nn.Layer``, cast to the data type of each parameter.

    Args:
        layer: The model; targets that it lacks are left out.
        tensors: Tensors of an opened folder, by name.
        mappings: See ``load_weights``.
        cut: How the model is cut among ranks.
        done: Called with each parameter that has been loaded.

    Returns:
        The targets that kept their initial values, because a source is missing.

    Raises:
        CheckpointError: A file is truncated.
    """
    state = layer.state_dict()
    missing = {mapping.target for mapping in mappings if mapping.source not in tensors}
    groups = group_by_target(tensors, mappings)
    with Progress(
        "loading the weights", sum(prod(state[target].shape) for target in groups if target in state)
    ) as loaded:
        for target, sources in groups.items():
            if target not in missing and target in state:
                dtype = dtype_name(state[target])
                values = cut.read(target, tuple(state[target].shape), sources, dtype)
                state[target].set_value(values)
                loaded(values.size)
                done(target, state[target])
    return [target for target in dict.fromkeys(mapping.target for mapping in mappings) if target in missing]


def group_by_target(
    tensors: Mapping[str, TensorInfo], mappings: Sequence[WeightMapping]
) -> dict[str, list[MappedTensor]]:
    """Target -> the tensors of a folder that it is filled from."""
    found: dict[str, list[MappedTensor]] = {}
    for mapping in mappings:
        if mapping.source in tensors:
            found.setdefault(mapping.target, []).append((tensors[mapping.source], mapping))
    return found


def check_weights(
    folder: WeightFolder,
    expected: Mapping[str, Any],
    mappings: Sequence[WeightMapping],
    allow_missing: Iterable[str] = (),
    ignored: Iterable[str] = (),
) -> None:
    """Checks, from headers only, that ``load_weights`` can fill tensors of these shapes and data types.

    Args:
        folder: The weights.
        expected: Target -> anything with ``shape`` and ``dtype``.
        mappings: See ``load_weights``.
        allow_missing: See ``load_weights``.
        ignored: See ``load_weights``.

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape or data type.
        ValueError: The mappings do not cover the layer.
    """
    _check_cover(expected, mappings)
    allowed = set(allow_missing)
    problems = [
        *_unknown_allowed(allowed, mappings),
        *_missing(folder, mappings, allowed),
        *_unexpected(folder, mappings, (*IGNORED_TENSORS, *ignored)),
        *_mismatches(folder, expected, mappings),
    ]
    if problems:
        if codes := next((name for name in folder.tensors if name.rpartition(".")[2] in MARKERS), None):
            raise CheckpointError(
                f"{folder.path} has {codes}, so its weights are quantized, but no file says how: neither quantization_config of "
                "config.json nor quantize_config.json is there; get it from where the model came from"
            )
        raise CheckpointError("\n  ".join([f"the weights in {folder.path} do not fit the model:", *problems]))


def dtype_name(tensor: Any) -> str:
    """Data type of a paddle tensor or numpy array, as named in ``dtypes.STORAGE``."""
    return str(tensor.dtype).rpartition(".")[2]


def _check_cover(state: Mapping[str, Any], mappings: Sequence[WeightMapping]) -> None:
    slices: dict[str, list[TensorSlice | None]] = {}
    for mapping in mappings:
        slices.setdefault(mapping.target, []).append(mapping.dst_slice)
    uncovered = sorted(
        {*(set(slices) ^ set(state)), *(name for name, parts in slices.items() if not covers_axis(parts))}
    )
    if uncovered:
        raise ValueError(
            f"the mappings do not cover each tensor of the layer exactly once: {', '.join(uncovered[:_LISTED])}"
        )


def _unknown_allowed(allowed: set[str], mappings: Sequence[WeightMapping]) -> list[str]:
    unknown = allowed - {mapping.source for mapping in mappings}
    return _listing("allowed to be missing, but not in the weight map of the model", sorted(unknown))


def _missing(folder: WeightFolder, mappings: Sequence[WeightMapping], allowed: set[str]) -> list[str]:
    sources = dict.fromkeys(mapping.source for mapping in mappings)
    missing = [name for name in sources if name not in folder.tensors and name not in allowed]
    return _listing("missing", [_why_expected(folder, name) for name in missing])


def _why_expected(folder: WeightFolder, name: str) -> str:
    if name not in TIED_HEADS or TIED in read_json(folder.path / "config.json"):
        return name
    return f"{name} (config.json has no {TIED}, so the family takes false; set it to true if the LM head is tied to the embedding)"


def _unexpected(folder: WeightFolder, mappings: Sequence[WeightMapping], ignored: Sequence[str]) -> list[str]:
    sources = {mapping.source for mapping in mappings}
    unexpected = [
        name
        for name in folder.tensors
        if name not in sources and not any(fnmatchcase(name, pattern) for pattern in ignored)
    ]
    copies = [name for name in unexpected if name in TIED_HEADS and _repeats_embedding(folder, name, mappings)]
    return _listing("unexpected", [_explain(name) for name in unexpected if name not in copies])


def _explain(name: str) -> str:
    if name not in TIED_HEADS:
        return name
    return (
        f"{name} (config.json ties the LM head to the embedding, but the two differ; set tie_word_embeddings to false)"
    )


def _repeats_embedding(folder: WeightFolder, head: str, mappings: Sequence[WeightMapping]) -> bool:
    info = folder.tensors[head]
    sources = {r.source for r in mappings if not r.transpose and not r.src_slice and r.source in folder.tensors}
    candidates = (folder.tensors[name] for name in sorted(sources))
    return any(same_values(info, other) for other in candidates)


def same_values(left: TensorInfo, right: TensorInfo) -> bool:
    """Whether two stored tensors have the same type, shape and values, read piece by piece."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
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


def _mismatches(folder: WeightFolder, state: Mapping[str, Any], mappings: Sequence[WeightMapping]) -> list[str]:
    shapes, dtypes = {}, {}
    for mapping in mappings:
        if mapping.source not in folder.tensors:
            continue
        info, parameter = folder.tensors[mapping.source], state[mapping.target]
        expected = source_shape(tuple(parameter.shape), mapping)
        if info.shape != expected:
            shapes[mapping.source] = f"{mapping.source} is {list(info.shape)}, expected {list(expected)}"
        target = dtype_name(parameter)
        if info.dtype != target and (info.dtype not in FLOATS or target not in FLOATS):
            dtypes[mapping.source] = f"{mapping.source} is {info.dtype}, expected {target}"
    return _listing("with another shape", list(shapes.values())) + _listing(
        "with another data type", list(dtypes.values())
    )


def _listing(what: str, rows: Sequence[str]) -> list[str]:
    if not rows:
        return []
    more = f"; and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    return [f"{len(rows)} {'tensor' if len(rows) == 1 else 'tensors'} {what}: {'; '.join(rows[:_LISTED])}{more}"]

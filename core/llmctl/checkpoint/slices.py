"""Parts of a tensor's last axis, and filling a tensor of the card from the tensors of a file that make it up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.weight_map import TensorSlice, WeightMapping
from llmctl.checkpoint.formats.dtypes import STORAGE
from llmctl.checkpoint.formats.tensor_info import TensorInfo

Source = tuple[TensorInfo, WeightMapping]


def view(values: NDArray[Any], part: TensorSlice | None) -> NDArray[Any]:
    """The part of the last axis; writing to it writes to ``values``. The axis becomes three: blocks, units, the rest."""
    if part is None:
        return values
    *lead, length = values.shape
    rest = length // (part.blocks * part.of)
    return values.reshape(*lead, part.blocks, part.of, rest)[..., part.start : part.stop, :]


def taken(values: NDArray[Any], rename: WeightMapping) -> NDArray[Any]:
    """What a rename takes of its source, in paddle's layout."""
    piece = view(values.T if rename.transpose else values, rename.src_slice)
    return piece if rename.src_slice is None else piece.reshape(*piece.shape[:-3], -1)


def put(values: NDArray[Any], piece: NDArray[Any], place: TensorSlice | None) -> None:
    """Writes a piece to its place."""
    target = view(values, place)
    target[...] = piece.reshape(target.shape)


def fill(values: NDArray[Any], sources: Iterable[Source], dtype: str) -> None:
    """Fills a tensor of the card (C order, storage of ``dtype``); a source of which a part is taken is read whole.

    Raises:
        CheckpointError: A file ends early or a value does not fit into ``dtype``.
    """
    for info, rename in sources:
        if in_rows(rename, len(info.shape)):
            rows = values.T if rename.transpose else values
            info.read_into(rows, dtype, start=first_row(rename, values.shape))
            continue
        source = np.empty(info.shape, STORAGE[dtype])
        info.read_into(source, dtype)
        put(values, taken(source, rename), rename.dst_slice)


def source_shape(target_shape: tuple[int, ...], rename: WeightMapping) -> tuple[int, ...]:
    """The shape that a rename's source must have for a target of this shape."""
    shape = piece_shape(target_shape, rename.dst_slice)
    if rename.src_slice:
        *lead, length = shape
        shape = (*lead, length * rename.src_slice.of // (rename.src_slice.stop - rename.src_slice.start))
    return shape[::-1] if rename.transpose else shape


def piece_shape(target_shape: tuple[int, ...], place: TensorSlice | None) -> tuple[int, ...]:
    """The shape of what lies in a place of a target."""
    if place is None:
        return target_shape
    *lead, length = target_shape
    return (*lead, length * (place.stop - place.start) // place.of)


def complete(parts: Sequence[TensorSlice | None]) -> bool:
    """Whether parts cover an axis once."""
    if None in parts:
        return len(parts) == 1
    ordered = sorted((part.blocks, part.of, part.start, part.stop) for part in parts if part)
    ends = [0, *(part[3] for part in ordered)]
    alike = len({part[:2] for part in ordered}) == 1
    return alike and [part[2] for part in ordered] == ends[:-1] and ends[-1] == ordered[0][1]


def in_rows(rename: WeightMapping, axes: int) -> bool:
    """Whether a target is a stretch of the rows of one tensor in a file."""
    stretch = rename.src_slice is None or (rename.src_slice.blocks == 1 and (rename.transpose or axes == 1))
    return rename.dst_slice is None and stretch


def first_row(rename: WeightMapping, shape: tuple[int, ...]) -> int:
    """The row of the file at which a target of this shape begins, if it lies ``in_rows``."""
    return (
        rename.src_slice.start * shape[-1] // (rename.src_slice.stop - rename.src_slice.start)
        if rename.src_slice
        else 0
    )

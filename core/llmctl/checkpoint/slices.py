"""Slices of the last axis of a tensor, and filling a tensor of the card from slices of stored tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.weight_map import TensorSlice, WeightMapping
from llmctl.checkpoint.formats.dtypes import STORAGE
from llmctl.checkpoint.formats.tensor_info import TensorInfo

MappedTensor = tuple[TensorInfo, WeightMapping]


def slice_view(values: NDArray[Any], part: TensorSlice | None) -> NDArray[Any]:
    """A view of a slice of the last axis, which becomes three axes: blocks, units of the slice, elements of a unit."""
    if part is None:
        return values
    *lead, length = values.shape
    inner = length // (part.blocks * part.of)
    return values.reshape(*lead, part.blocks, part.of, inner)[..., part.start : part.stop, :]


def take_slice(values: NDArray[Any], mapping: WeightMapping) -> NDArray[Any]:
    """The slice that a mapping takes from its source, in paddle's layout."""
    piece = slice_view(values.T if mapping.transpose else values, mapping.src_slice)
    return piece if mapping.src_slice is None else piece.reshape(*piece.shape[:-3], -1)


def write_slice(values: NDArray[Any], piece: NDArray[Any], dst: TensorSlice | None) -> None:
    """Writes a slice."""
    target = slice_view(values, dst)
    target[...] = piece.reshape(target.shape)


def fill(values: NDArray[Any], sources: Iterable[MappedTensor], dtype: str) -> None:
    """Fills a tensor of the card (C order, storage type of ``dtype``); a source is read whole even if a slice is taken.

    Raises:
        CheckpointError: A file is truncated, or a value does not fit into ``dtype``.
    """
    for info, mapping in sources:
        if is_row_range(mapping, len(info.shape)):
            rows = values.T if mapping.transpose else values
            info.read_into(rows, dtype, start=first_row(mapping, values.shape))
            continue
        source = np.empty(info.shape, STORAGE[dtype])
        info.read_into(source, dtype)
        write_slice(values, take_slice(source, mapping), mapping.dst_slice)


def fill_part(
    values: NDArray[Any],
    sources: Sequence[MappedTensor],
    dtype: str,
    axis: int,
    stretches: Sequence[range],
    whole: tuple[int, ...],
) -> bool:
    """Fills a part of a tensor of the card, as ``fill`` does the whole, if it is made of rows of one stored tensor.

    Args:
        values: The part.
        sources: What the whole tensor is filled from.
        dtype: As for ``fill``.
        axis: The axis along which the part is cut.
        stretches: The places along this axis that it has, in order.
        whole: The shape of the whole tensor.

    Returns:
        Whether it is; otherwise nothing is read.
    """
    (info, mapping), *others = sources
    by_rows = axis == (values.ndim - 1 if mapping.transpose else 0)
    if others or not by_rows or not is_row_range(mapping, len(info.shape)):
        return False
    rows, first, at = values.T if mapping.transpose else values, first_row(mapping, whole), 0
    for stretch in stretches:
        info.read_into(rows[at : at + len(stretch)], dtype, first + stretch.start)
        at += len(stretch)
    return True


def source_shape(target_shape: tuple[int, ...], mapping: WeightMapping) -> tuple[int, ...]:
    """Shape of the source of a mapping for a target of this shape."""
    shape = slice_shape(target_shape, mapping.dst_slice)
    if mapping.src_slice:
        *lead, length = shape
        shape = (*lead, length * mapping.src_slice.of // (mapping.src_slice.stop - mapping.src_slice.start))
    return shape[::-1] if mapping.transpose else shape


def slice_shape(target_shape: tuple[int, ...], dst: TensorSlice | None) -> tuple[int, ...]:
    """Shape of a slice of a target."""
    if dst is None:
        return target_shape
    *lead, length = target_shape
    return (*lead, length * (dst.stop - dst.start) // dst.of)


def covers_axis(parts: Sequence[TensorSlice | None]) -> bool:
    """Whether slices cover an axis exactly once."""
    if None in parts:
        return len(parts) == 1
    ordered = sorted((part.blocks, part.of, part.start, part.stop) for part in parts if part)
    ends = [0, *(part[3] for part in ordered)]
    alike = len({part[:2] for part in ordered}) == 1
    return alike and [part[2] for part in ordered] == ends[:-1] and ends[-1] == ordered[0][1]


def is_row_range(mapping: WeightMapping, axes: int) -> bool:
    """Whether a target is a range of rows of one stored tensor, which can be read without the other rows."""
    contiguous = mapping.src_slice is None or (mapping.src_slice.blocks == 1 and (mapping.transpose or axes == 1))
    return mapping.dst_slice is None and contiguous


def first_row(mapping: WeightMapping, shape: tuple[int, ...]) -> int:
    """First row of that range (see ``is_row_range``) for a target of this shape."""
    return (
        mapping.src_slice.start * shape[-1] // (mapping.src_slice.stop - mapping.src_slice.start)
        if mapping.src_slice
        else 0
    )

"""A weight whose codes fill bytes, two of 4 bits or one of 8, in groups of inputs that share a scale, in numpy.

The codes are those of ``blockwise`` or of a checkpoint (``formats``). The layer over them is in ``linear``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.quant.formats.codes import Codes

WHOLE_NUMBERS = tuple(float(code) for code in range(-8, 8))
"""Levels of 4-bit codes of checkpoints, in units of the scale."""


@dataclass(frozen=True)
class Packed:
    """A quantized weight [in, out]: (level + zero) * scale.

    Attributes:
        codes: int8 [out, groups * size], or uint8 [out, groups * size / 2] with two codes a byte, the first in the low nibble.
            Groups are padded to one size.
        scales: float32 or float16 [out, groups].
        inputs: Number of inputs, without padding.
        levels: Values of the 16 codes of 4 bits; empty = 8 bits.
        steps: Of 8 bits: codes in one unit of the scale.
        zeros: Added to levels, float16 [out, groups]; None = nothing is.
        columns: Where each input is, int32 [in]; None = in order, from 0 on.
        dtype: The type that values are rounded to.
    """

    codes: NDArray[Any]
    scales: NDArray[Any]
    inputs: int
    levels: tuple[float, ...] = ()
    steps: int = 1
    zeros: NDArray[np.float16] | None = None
    columns: NDArray[np.int32] | None = None
    dtype: str = "float32"


def pack(codes: Codes) -> Packed:
    """The codes of a checkpoint, unchanged, with inputs of a group side by side."""
    (outputs, inputs), groups = codes.codes_OI.shape, codes.scales_OG.shape[1]
    counts = np.bincount(codes.group_I, minlength=groups)
    size = int(counts.max())
    size += size % 2
    order = np.argsort(codes.group_I, kind="stable")
    columns = np.empty(inputs, np.int32)
    columns[order] = np.arange(inputs) + np.repeat(np.arange(groups) * size - (np.cumsum(counts) - counts), counts)
    rows = np.zeros((outputs, groups * size), np.int8)
    rows[:, columns] = codes.codes_OI
    halves = codes.scales_OG.astype(np.float16)
    return Packed(
        codes=rows if codes.bits == 8 else in_bytes((rows + 8).astype(np.uint8)),
        scales=halves if np.array_equal(halves, codes.scales_OG) else codes.scales_OG,
        inputs=inputs,
        levels=() if codes.bits == 8 else codes.levels or WHOLE_NUMBERS,
        zeros=codes.zeros_OG.astype(np.float16) if codes.zeros_OG.any() else None,
        columns=None if np.array_equal(columns, np.arange(inputs)) else columns,
        dtype=codes.dtype,
    )


def unpack(packed: Packed) -> NDArray[np.float32]:
    """The weight [in, out], in float32."""
    outputs, groups = packed.scales.shape
    levels = byte_values(packed.levels)[packed.codes] if packed.levels else packed.codes / np.float32(packed.steps)
    grouped = levels.reshape(outputs, groups, -1)
    if packed.zeros is not None:
        grouped = grouped + packed.zeros[..., None].astype(np.float32)
    rows = (grouped * packed.scales[..., None].astype(np.float32)).reshape(outputs, -1)
    rows = rows[:, : packed.inputs] if packed.columns is None else rows[:, packed.columns]
    return np.ascontiguousarray(rows.T)


def in_bytes(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes of 4 bits [out, in], two in a byte."""
    return np.asarray(codes[:, ::2] | codes[:, 1::2] << 4)


def byte_values(levels: tuple[float, ...]) -> NDArray[np.float32]:
    """The two values of each byte, float32 [256, 2]."""
    byte, values = np.arange(256), np.array(levels, np.float32)
    return np.stack([values[byte & 15], values[byte >> 4]], axis=1)

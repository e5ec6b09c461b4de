"""Integer codes of a weight with scales and zero points, and words that hold several codes.

Shape suffixes: I inputs, O outputs of a linear, G groups of inputs that share a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

WORD = 32
"""Bits of a word."""


WORDS, FLOATS, INDICES = ("int32",), ("float16", "bfloat16", "float32"), ("int32", "int64")
"""Types of words, scales, and groups of inputs."""


class Part(Protocol):
    """A stored tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """The name of its type."""


@dataclass(frozen=True)
class Codes:
    """A weight [out, in]: (code + zero) * scale, or (level of the code + zero) * scale.

    Attributes:
        bits: Codes are -2^(bits-1) to 2^(bits-1) - 1.
        codes_OI: The codes.
        scales_OG: float32.
        zeros_OG: float32 whole numbers.
        group_I: The group of each input.
        levels: Of 4 bits: the value that each code stands for, from the least code on; empty = the code itself.
        dtype: The type that values are rounded to.
    """

    bits: int
    codes_OI: NDArray[np.int16]
    scales_OG: NDArray[np.float32]
    zeros_OG: NDArray[np.float32]
    group_I: NDArray[np.int64]
    levels: tuple[float, ...] = ()
    dtype: str = "float32"

    @property
    def group_size(self) -> int | None:
        """Inputs of a group; 0 = one group; None = groups are not consecutive inputs of this number."""
        inputs, groups = len(self.group_I), self.scales_OG.shape[1]
        if groups == 1:
            return 0
        size = -(-inputs // groups) if self.group_I[0] else int((self.group_I == 0).sum())
        return size if size and np.array_equal(self.group_I, np.arange(inputs) // size) else None

    def values(self) -> NDArray[np.float32]:
        """The weight [O, I] of codes without levels."""
        assert not self.levels, "values of levels are those of their tensor"
        return (self.codes_OI + self.zeros_OG[:, self.group_I]) * self.scales_OG[:, self.group_I]


def unpack_words(words: NDArray[Any], bits: int, axis: int) -> NDArray[np.int16]:
    """The unsigned values of little-endian words along an axis, lowest bits first, without gaps; what is left of the last is dropped."""
    rows = np.moveaxis(words.astype(np.int32, copy=False).view(np.uint32), axis, -1)
    stream = np.unpackbits(np.ascontiguousarray(rows, "<u4").view(np.uint8), axis=-1, bitorder="little")
    whole = stream[..., : stream.shape[-1] // bits * bits]
    fields = whole.reshape(*stream.shape[:-1], -1, bits).astype(np.int16)
    return np.moveaxis(fields @ (1 << np.arange(bits)).astype(np.int16), -1, axis)


def pack_words(values: NDArray[Any], bits: int, axis: int) -> NDArray[np.int32]:
    """Little-endian words of unsigned values along an axis, as ``unpack_words`` reads them; their number is a multiple of a word's."""
    rows = np.moveaxis(np.asarray(values, np.uint8), axis, -1)
    fields = (rows[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    stream = np.packbits(fields.reshape(*rows.shape[:-1], -1), axis=-1, bitorder="little")
    words = np.ascontiguousarray(stream).view("<i4").astype(np.int32)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis))


def whole_words(inputs: int, outputs: int, bits: int) -> str:
    """Why codes do not fill words along both axes; empty = they do."""
    unit = WORD // bits
    for name, size in (("inputs", inputs), ("outputs", outputs)):
        if size % unit:
            return f"{size} {name} are not a multiple of {unit}"
    return ""


def half_scales(scales: NDArray[np.float32]) -> NDArray[np.float16]:
    """Scales in float16.

    Raises:
        ValueError: One is not a value of float16.
    """
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), scales):
        raise ValueError("it has scales that float16 does not hold")
    return halves


def nearest(weight_OI: NDArray[np.float32], group: int) -> Codes:
    """The nearest codes of 8 bits, with a scale for every ``group`` inputs."""
    outputs, inputs = weight_OI.shape
    values = np.pad(weight_OI, ((0, 0), (0, -inputs % group))).reshape(outputs, -1, group)
    scales = np.abs(values).max(-1) / np.float32(127)
    # float16 ends at 65504, and below 2^-14 it has steps of 2^-24, which are felt where the largest scale is small, too.
    if not scales.any() or 2**-17 <= scales.max() <= 60000:
        scales = scales.astype(np.float16).astype(np.float32)
    units = np.where(scales == 0, np.float32(1), scales)[..., None]
    codes = np.rint(values / units).clip(-128, 127).astype(np.int16)
    codes_OI = np.ascontiguousarray(codes.reshape(outputs, -1)[:, :inputs])
    return Codes(8, codes_OI, scales, np.zeros_like(scales), consecutive(inputs, group))


def consecutive(inputs: int, size: int) -> NDArray[np.int64]:
    """The group of each input, of groups of ``size`` consecutive inputs; 0 or less = one group."""
    return np.arange(inputs) // (size if size > 0 else inputs)


def check_shape(name: str, array: NDArray[Any] | Part, shape: tuple[int, ...]) -> None:
    """Checks the shape of a tensor.

    Raises:
        ValueError: It has another.
    """
    if array.shape != shape:
        raise ValueError(f"{name} is {list(array.shape)}, expected {list(shape)}")


def check_part(name: str, part: Part, shape: tuple[int, ...], dtypes: Sequence[str]) -> None:
    """Checks the shape and the type of a tensor from its header.

    Raises:
        ValueError: It has others.
    """
    if part.dtype not in dtypes:
        raise ValueError(f"{name} has the type {part.dtype}, expected {' or '.join(dtypes)}")
    check_shape(name, part, shape)


def check_scales(name: str, scales: NDArray[Any]) -> NDArray[np.float32]:
    """Scales as float32.

    Raises:
        ValueError: A scale is not finite.
    """
    values = np.ascontiguousarray(scales, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has values that are not finite")
    return values

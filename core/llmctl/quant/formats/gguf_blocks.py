"""The blocks of GGUF: how llama.cpp stores rows of weights, read as codes with scales, and written.

A type stores ``size`` consecutive values of a row in ``nbytes`` bytes. Shape suffixes: B blocks, N values of a block, G groups of a
block that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Blocks:
    """Values of blocks: codes * scale + shift.

    Attributes:
        codes_BN: Whole numbers.
        scales_BG: Of the groups.
        shifts_BG: None = 0.
    """

    codes_BN: NDArray[np.int16]
    scales_BG: Float
    shifts_BG: Float | None = None

    def values(self) -> Float:
        """The values [B, N]."""
        blocks, groups = self.scales_BG.shape
        values = self.codes_BN.astype(np.float32).reshape(blocks, groups, -1) * self.scales_BG[..., None]
        if self.shifts_BG is not None:
            values += self.shifts_BG[..., None]
        return values.reshape(blocks, -1)


@dataclass(frozen=True)
class BlockType:
    """A type of tensor.

    Attributes:
        name: In llama.cpp.
        size: Values of a block.
        nbytes: Bytes of a block.
        decode: From bytes [B, nbytes]; None = floats.
        dtype: Of floats, a name in ``checkpoint.formats.dtypes``.
    """

    name: str
    size: int
    nbytes: int
    decode: Callable[[Bytes], Blocks] | None = None
    dtype: str = "float32"


def _half(raw: Bytes, start: int) -> Float:
    """A float16 of each block [B, 1]."""
    return np.ascontiguousarray(raw[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(raw: Bytes) -> NDArray[np.int16]:
    """Low halves of the bytes, then high halves."""
    return np.concatenate([raw & 15, raw >> 4], axis=1).astype(np.int16)


def _bits(raw: Bytes) -> NDArray[np.int16]:
    """Bits of 4 bytes, the lowest first [B, 32]."""
    return np.unpackbits(raw, axis=1, bitorder="little").astype(np.int16)


def _q4_0(raw: Bytes) -> Blocks:
    return Blocks(_nibbles(raw[:, 2:]) - np.int16(8), _half(raw, 0))


def _q4_1(raw: Bytes) -> Blocks:
    return Blocks(_nibbles(raw[:, 4:]), _half(raw, 0), _half(raw, 2))


def _q5_0(raw: Bytes) -> Blocks:
    return Blocks((_nibbles(raw[:, 6:]) | _bits(raw[:, 2:6]) << 4) - np.int16(16), _half(raw, 0))


def _q5_1(raw: Bytes) -> Blocks:
    return Blocks(_nibbles(raw[:, 8:]) | _bits(raw[:, 4:8]) << 4, _half(raw, 0), _half(raw, 2))


def _q8_0(raw: Bytes) -> Blocks:
    return Blocks(raw[:, 2:].view(np.int8).astype(np.int16), _half(raw, 0))


def _shifted(raw: Bytes, shifts: tuple[int, ...], mask: int) -> NDArray[np.int16]:
    """Fields of bytes: of all bytes those at the first shift, then at the next [B, shifts * bytes]."""
    return np.concatenate([raw >> shift & mask for shift in shifts], axis=1).astype(np.int16)


def _q2_k(raw: Bytes) -> Blocks:
    codes = np.concatenate([_shifted(raw[:, start : start + 32], (0, 2, 4, 6), 3) for start in (16, 48)], axis=1)
    scales = raw[:, :16]
    return Blocks(codes, _half(raw, 80) * (scales & 15), -_half(raw, 82) * (scales >> 4))


def _q3_k(raw: Bytes) -> Blocks:
    low = np.concatenate([_shifted(raw[:, start : start + 32], (0, 2, 4, 6), 3) for start in (32, 64)], axis=1)
    high = _shifted(raw[:, :32], tuple(range(8)), 1)
    packed = raw[:, 96:108]
    scales = _shifted(packed[:, :8], (0, 4), 15) | _shifted(packed[:, 8:], (0, 2, 4, 6), 3) << 4
    return Blocks(low + 4 * high - np.int16(4), _half(raw, 108) * (scales - 32).astype(np.float32))


def _scales_and_minima(packed: Bytes) -> tuple[Float, Float]:
    """Eight scales and eight minima of 6 bits in 12 bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(raw: Bytes) -> Blocks:
    scales, minima = _scales_and_minima(raw[:, 4:16])
    codes = np.concatenate([_nibbles(raw[:, start : start + 32]) for start in range(16, 144, 32)], axis=1)
    return Blocks(codes, _half(raw, 0) * scales, -(_half(raw, 2) * minima))


def _q5_k(raw: Bytes) -> Blocks:
    scales, minima = _scales_and_minima(raw[:, 4:16])
    low = np.concatenate([_nibbles(raw[:, start : start + 32]) for start in range(48, 176, 32)], axis=1)
    return Blocks(
        low | _shifted(raw[:, 16:48], tuple(range(8)), 1) << 4, _half(raw, 0) * scales, -(_half(raw, 2) * minima)
    )


def _q6_k(raw: Bytes) -> Blocks:
    halves = []
    for half in range(2):
        low = _nibbles(raw[:, 64 * half : 64 * half + 64])
        high = _shifted(raw[:, 128 + 32 * half : 160 + 32 * half], (0, 2, 4, 6), 3)
        halves.append(low | high << 4)
    scales = raw[:, 192:208].view(np.int8).astype(np.float32)
    return Blocks(np.concatenate(halves, axis=1) - np.int16(32), _half(raw, 208) * scales)


LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)
"""Of the codes of IQ4."""


def _iq4_nl(raw: Bytes) -> Blocks:
    return Blocks(LEVELS[_nibbles(raw[:, 2:])], _half(raw, 0))


def _iq4_xs(raw: Bytes) -> Blocks:
    high = np.ascontiguousarray(raw[:, 2:4]).view("<u2")
    low = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=2).reshape(len(raw), 8)
    scales = low | (high >> np.arange(0, 16, 2, dtype=np.uint16) & 3) << 4
    codes = np.concatenate([_nibbles(raw[:, start : start + 16]) for start in range(8, 136, 16)], axis=1)
    return Blocks(LEVELS[codes], _half(raw, 0) * (scales.astype(np.float32) - 32))


FLOAT_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int16)
"""Of the codes of MXFP4: twice the values of floats with 2 bits of exponent and 1 of mantissa."""


def _mxfp4(raw: Bytes) -> Blocks:
    return Blocks(FLOAT_LEVELS[_nibbles(raw[:, 1:])], np.ldexp(np.float32(1), raw[:, :1].astype(np.int32) - 128))


TYPES = {
    0: BlockType("F32", 1, 4, dtype="float32"),
    1: BlockType("F16", 1, 2, dtype="float16"),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    10: BlockType("Q2_K", 256, 84, _q2_k),
    11: BlockType("Q3_K", 256, 110, _q3_k),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    20: BlockType("IQ4_NL", 32, 18, _iq4_nl),
    23: BlockType("IQ4_XS", 256, 136, _iq4_xs),
    30: BlockType("BF16", 1, 2, dtype="bfloat16"),
    39: BlockType("MXFP4", 32, 17, _mxfp4),
}
"""Number of a type in GGUF -> type."""

UNREAD = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Number of a type that is not read -> its name."""

BY_NAME = {kind.name: kind for kind in TYPES.values()}
GROUP = 32
"""Values of the blocks that are written."""


def encode(values: Float, name: str) -> Bytes:
    """Rows [..., N] as blocks of a type, rounded as llama.cpp rounds without weights of importance.

    Args:
        values: Rows of a multiple of 32 values.
        name: ``Q8_0``, ``Q4_0`` or ``Q4_1``.

    Raises:
        ValueError: A value is not finite, or a scale is beyond float16.
    """
    blocks_BN = np.ascontiguousarray(values, np.float32).reshape(-1, GROUP)
    if not np.isfinite(blocks_BN).all():
        raise ValueError("values are not finite")
    if name == "Q8_0":
        scale_B1 = np.abs(blocks_BN).max(1, keepdims=True) / np.float32(127)
        exact_BN = _divided(blocks_BN, scale_B1)
        floor_BN = np.floor(np.abs(exact_BN))
        codes = np.copysign(floor_BN + np.floor(2 * (np.abs(exact_BN) - floor_BN)), exact_BN).astype(
            np.int8
        )  # half away from 0
        return _joined(name, [scale_B1], codes.view(np.uint8))
    if name == "Q4_0":
        at = np.abs(blocks_BN).argmax(1)[:, None]
        scale_B1 = np.take_along_axis(blocks_BN, at, 1) / np.float32(-8)
        codes = (_divided(blocks_BN, scale_B1) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
        return _joined(name, [scale_B1], _packed_nibbles(codes))
    low_B1 = blocks_BN.min(1, keepdims=True)
    scale_B1 = (blocks_BN.max(1, keepdims=True) - low_B1) / np.float32(15)
    codes = (_divided(blocks_BN - low_B1, scale_B1) + np.float32(0.5)).astype(np.uint8).clip(0, 15)
    return _joined("Q4_1", [scale_B1, low_B1], _packed_nibbles(codes))


def encode_codes(codes: NDArray[Any], scales: Float, name: str) -> Bytes:
    """Codes [..., N] with a scale for each 32 [..., N / 32] as blocks of ``Q4_0`` (-8 to 7) or ``Q8_0``, as they are.

    Raises:
        ValueError: A code has more bits, or a scale is no value of float16.
    """
    least, most = (-8, 7) if name == "Q4_0" else (-128, 127)
    codes_BN, scale_B1 = np.asarray(codes).reshape(-1, GROUP), np.asarray(scales, np.float32).reshape(-1, 1)
    if codes_BN.min() < least or codes_BN.max() > most:
        raise ValueError(f"{name} has codes from {least} to {most}, not {codes_BN.min()} to {codes_BN.max()}")
    if not np.array_equal(scale_B1.astype(np.float16).astype(np.float32), scale_B1):
        raise ValueError(f"{name} has scales in float16, which does not hold these")
    if name == "Q8_0":
        return _joined(name, [scale_B1], codes_BN.astype(np.int8).view(np.uint8))
    return _joined(name, [scale_B1], _packed_nibbles((codes_BN + 8).astype(np.uint8)))


def _divided(values: Float, scale_B1: Float) -> Float:
    """values / scale; 0 where the scale is 0."""
    inverse = np.divide(np.float32(1), scale_B1, out=np.zeros_like(scale_B1), where=scale_B1 != 0)
    return values * inverse


def _packed_nibbles(codes_BN: Bytes) -> Bytes:
    return codes_BN[:, : GROUP // 2] | codes_BN[:, GROUP // 2 :] << 4


def _joined(name: str, halves: list[Float], rest: Bytes) -> Bytes:
    with np.errstate(over="ignore"):
        heads = [half.astype("<f2") for half in halves]
    if any(not np.isfinite(head).all() for head in heads):
        raise ValueError(f"{name} has scales in float16, which ends at 65504")
    return np.concatenate([*(head.view(np.uint8) for head in heads), rest], axis=1)

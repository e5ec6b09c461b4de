"""Floats of 8 and 4 bits with scales, as FP8, MXFP8, NVFP4 and MXFP4 checkpoints have them.

``weight`` [O, I] has floats of 8 bits: of 4 exponent and 3 mantissa bits (e4m3), or 5 and 2 (e5m2). Floats of 4 bits (e2m1) are two in
a byte, the first in the low half: ``weight_packed`` [O, I/2], or ``weight`` of ModelOpt. A weight is its float times its scale, in spite of
the name ``weight_scale_inv``; scales are floats, also of 8 bits, or powers of 2 as bytes (e8m0). There may be one more for all of them:
``weight_scale_2`` multiplies, ``weight_global_scale`` divides.

Values are exact products in float32. The fused engine has no such floats: FP4 in groups of 32 is exact in its 8 bits, all else is
rounded to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.quant.formats.codes import FLOATS, Codes, Part, check_part, consecutive, nearest
from llmctl.quant.formats.scheme import Block

Float = NDArray[np.float32]

SCALES = ("weight_scale_inv", "weight_scale")
"""Names of the scales; a linear has one."""

WHOLE = ("weight_scale_2", "weight_global_scale")
"""Names of the scale of all scales."""

WEIGHTS = ("float8_e4m3fn", "float8_e5m2")
"""Types of floats of 8 bits."""

POWERS = ("float8_e8m0fnu", "uint8")
"""Types of scales that are powers of 2."""


def _e4m3() -> Float:
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    sizes = np.ldexp(np.where(exponent > 0, 8 + mantissa, mantissa), np.maximum(exponent, 1) - 10)
    sizes[byte & 127 == 127] = np.nan
    return np.where(byte < 128, sizes, -sizes).astype(np.float32)


LEVELS = {
    "float8_e4m3fn": _e4m3(),
    "float8_e5m2": (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32),
    "float8_e8m0fnu": np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.nan).astype(np.float32),
}
"""Type -> the values of its bytes."""

STRIP = 256
"""Outputs whose codes are made at a time, in the memory of their floats."""

FOUR = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int16)
"""Twice the values of floats of 4 bits."""


def check(parts: Mapping[str, Part], blocks: Sequence[Block | None], bits: int) -> tuple[int, int]:
    """Outputs and inputs of a linear, from the headers of its tensors.

    Args:
        parts: Its tensors.
        blocks: What may share a scale; None = all weights or an output.
        bits: Of the floats, the fewest.

    Raises:
        ValueError: The tensors contradict each other.
    """
    name, scales = _weight(parts), [name for name in SCALES if name in parts]
    stored = parts[name]
    if len(scales) != 1:
        raise ValueError(f"it has {' and '.join(scales) or 'no scales'}, expected {' or '.join(SCALES)}")
    four = ("uint8",) if bits == 4 else ()
    check_part(name, stored, stored.shape, four if name == "weight_packed" and four else (*WEIGHTS, *four))
    if len(stored.shape) != 2 or min(stored.shape) < 1:
        raise ValueError(f"the weight is {list(stored.shape)}, expected a matrix")
    outputs, inputs = stored.shape[0], stored.shape[1] * (1 if stored.dtype in WEIGHTS else 2)
    scale = parts[scales[0]]
    fitting = [shape for block in blocks for shape in _shapes(block, outputs, inputs)]
    expected = scale.shape if scale.shape in fitting else fitting[0]
    check_part(scales[0], scale, expected, (*FLOATS, *WEIGHTS, *POWERS))
    if scale.dtype in WEIGHTS and not any(name in parts for name in WHOLE):
        raise ValueError(f"{scales[0]} has floats of 8 bits, but there is no {' or '.join(WHOLE)}")
    for name in WHOLE:
        if name in parts:
            check_part(name, parts[name], parts[name].shape if parts[name].shape in ((), (1,)) else (1,), FLOATS)
    return outputs, inputs


def _shapes(block: Block | None, outputs: int, inputs: int) -> list[tuple[int, ...]]:
    """Shapes that scales of such blocks have."""
    if block is None:
        return [*_shapes((1, 0), outputs, inputs), *_shapes((0, 0), outputs, inputs)]
    rows, columns = (-(-size // one) if one else 1 for size, one in zip((outputs, inputs), block, strict=True))
    found: list[tuple[int, ...]] = [(rows, columns)]
    if columns == 1:
        found += [(rows,)] if rows > 1 or block != (0, 0) else [(1,), ()]
    return found


def block_of(parts: Mapping[str, Part], blocks: Sequence[Block | None], shape: tuple[int, int]) -> Block:
    """What shares a scale of a linear that ``check`` passed."""
    scale = next(parts[name] for name in SCALES if name in parts)
    known = [one for block in blocks for one in ([(1, 0), (0, 0)] if block is None else [block])]
    return next(block for block in known if scale.shape in _shapes(block, *shape))


def values(
    parts: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str], block: Block, rows: slice = slice(None)
) -> Float:
    """The weight [O, I] of some outputs.

    Args:
        parts: The linear's tensors, as bits.
        dtypes: Their types.
        block: What shares a scale.
        rows: The outputs.

    Raises:
        ValueError: A value is not finite.
    """
    codes, name = _codes(parts, dtypes, rows)
    levels = FOUR[codes] * np.float32(0.5) if name == "four" else LEVELS[name][codes]
    first = rows.start or 0
    outputs = np.arange(first, first + len(levels))
    scales = _scales(parts, dtypes)
    of_rows = scales[outputs // block[0] if block[0] else np.zeros_like(outputs)]
    inputs = np.arange(levels.shape[1])
    weight = levels * of_rows[:, inputs // block[1] if block[1] else np.zeros_like(inputs)]
    if not np.isfinite(weight).all():
        raise ValueError("it has values that are not finite")
    return np.asarray(weight, np.float32)


def codes(parts: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str], block: Block, group: int) -> Codes:
    """Codes of 8 bits: the floats themselves where they are twice whole numbers in groups of a multiple of ``group`` inputs, or the
    nearest in groups of this number.

    Raises:
        ValueError: A value is not finite.
    """
    outputs = len(parts[_weight(parts)])
    strips = [
        _strip(parts, dtypes, block, group, slice(start, min(start + STRIP, outputs)))
        for start in range(0, outputs, STRIP)
    ]
    codes_OI, scales_OG, zeros_OG = (
        np.concatenate([getattr(strip, name) for strip in strips]) for name in ("codes_OI", "scales_OG", "zeros_OG")
    )
    return replace(strips[0], codes_OI=codes_OI, scales_OG=scales_OG, zeros_OG=zeros_OG)


def _strip(
    parts: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str], block: Block, group: int, rows: slice
) -> Codes:
    """The codes of some outputs, as ``codes`` gives them."""
    weight = values(parts, dtypes, block, rows)
    found, name = _codes(parts, dtypes, rows)
    outputs, inputs = found.shape
    if name != "four" or block[0] > 1 or block[1] % group:
        return nearest(weight, group)
    scales = _scales(parts, dtypes)[rows if block[0] else slice(None)] / np.float32(2)
    scales = np.array(np.broadcast_to(scales, (outputs, scales.shape[1])))
    return Codes(8, FOUR[found], scales, np.zeros_like(scales), consecutive(inputs, block[1]))


def _weight(parts: Mapping[str, Any]) -> str:
    return "weight_packed" if "weight_packed" in parts else "weight"


def _codes(parts: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str], rows: slice) -> tuple[NDArray[np.uint8], str]:
    """The codes of some outputs, and the name of their levels."""
    name = _weight(parts)
    stored = parts[name][rows]
    if dtypes[name] in WEIGHTS:
        return stored, dtypes[name]
    return np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(stored), -1), "four"


def _scales(parts: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str]) -> Float:
    """The scales as a matrix, with that of all of them."""
    name = next(name for name in SCALES if name in parts)
    stored, kind = parts[name], dtypes[name]
    kind = POWERS[0] if kind in POWERS else kind
    scales = LEVELS[kind][stored] if kind in LEVELS else stored.astype(np.float32)
    scales = scales.reshape(len(scales) if scales.ndim else 1, -1)
    if WHOLE[0] in parts:
        scales = scales * parts[WHOLE[0]].astype(np.float32).reshape(1, 1)
    if WHOLE[1] in parts:
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = scales / parts[WHOLE[1]].astype(np.float32).reshape(1, 1)
    return np.asarray(scales, np.float32)

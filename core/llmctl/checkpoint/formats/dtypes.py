"""Data types of checkpoint files: names, numpy storage types, and casts.

numpy has no bfloat16: it is stored as ``uint16``, the upper 16 bits of a float32; floats of 8 bits are stored as ``uint8``, and mean
something only with their scales (``quant.formats.small_floats``). Everything is little-endian.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STORAGE: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
    "float8_e4m3fn": np.dtype("u1"),
    "float8_e5m2": np.dtype("u1"),
    "float8_e8m0fnu": np.dtype("u1"),
}
"""Name -> numpy dtype of the stored bits."""

BITS_ONLY = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
"""Types that numpy lacks; arrays hold their bits."""

FLOATS = ("float64", "float32", "float16", "bfloat16")


def cast(values: NDArray[Any], source: str, target: str) -> NDArray[Any]:
    """Casts values from data type ``source`` to the storage of ``target``, rounded to nearest, ties to even.

    Raises:
        ValueError: The types are not both floating-point, or a finite value does not fit into ``target``.
    """
    if source == target:
        return values
    if source not in FLOATS or target not in FLOATS:
        raise ValueError(f"{source} cannot be stored as {target}")
    wide = widen(values) if source == "bfloat16" else values
    with np.errstate(over="ignore"):
        cast_values = round_bfloat16(wide) if target == "bfloat16" else wide.astype(STORAGE[target], copy=False)
    narrower = STORAGE[target].itemsize < wide.dtype.itemsize
    if narrower and np.isfinite(wide).all() and not finite(cast_values, target).all():
        worst = float(np.abs(wide).max())
        raise ValueError(f"{worst:g} does not fit into {target}")
    return cast_values


def widen(bits: NDArray[Any]) -> NDArray[Any]:
    """bfloat16 bits as float32; exact."""
    wide = bits.astype("<u4")
    wide <<= 16
    return wide.view("<f4")


def round_bfloat16(values: NDArray[Any]) -> NDArray[Any]:
    """float32 (or wider, through float32) as bfloat16 bits, rounded to nearest even; NaN stays NaN."""
    single = np.ascontiguousarray(values, dtype="<f4")
    bits = single.view("<u4")
    rounded: NDArray[Any] = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")
    nan = np.isnan(single)
    if nan.any():
        rounded[nan] = ((bits[nan] >> 16) | 0x40).astype("<u2")
    return rounded


def finite(values: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Which values of this data type are finite; of bfloat16 those without an exponent of only ones."""
    return (values & 0x7F80) != 0x7F80 if name == "bfloat16" else np.isfinite(values)  # type: ignore[no-any-return]

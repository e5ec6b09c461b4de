"""Scales and zero points of groups of a weight, and the nearest codes.

Scales are values of float16, as files store them, so that codes are chosen for the scales that will be used. Shape suffixes:
I inputs, O outputs, G groups of inputs, E inputs of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LIMITS = {4: (-8, 7), 8: (-127, 127)}
"""Bits -> the least and the greatest code."""

FORMS = ("symmetric", "signed", "asymmetric")
"""``symmetric``: -most to most; ``signed``: the largest magnitude becomes the least code whatever its sign, so the scale may be
negative; ``asymmetric``: whole zero points, from the smallest weight to the largest."""

SHRINK = tuple(np.arange(1.0, 0.59, -0.02).tolist())
"""Shares of the full range that a scale search tries."""

LEAST_NORMAL, LARGEST = float(np.finfo(np.float16).tiny), float(np.finfo(np.float16).max)
STRIP = 128
"""Outputs that are searched at a time: so few that what is computed of them stays in the cache."""


@dataclass(frozen=True)
class Grid:
    """The values that a weight [I, O] may have: (code + zero) * scale.

    Attributes:
        bits: Limits of the codes, as in ``LIMITS``.
        group: Inputs of a group; the last may have fewer.
        scales_GO: Values of float16, in float32.
        zeros_GO: Whole numbers in float32.
    """

    bits: int
    group: int
    scales_GO: Array
    zeros_GO: Array

    def rows(self, inputs: Array) -> tuple[Array, Array]:
        """Scales and zero points of some inputs [len, O]."""
        return self.scales_GO[inputs // self.group], self.zeros_GO[inputs // self.group]

    def codes(self, weight_IO: Array) -> NDArray[np.int16]:
        """The nearest codes."""
        weight_GEO = _grouped(weight_IO, self.group)
        codes_GEO = nearest(weight_GEO, self.scales_GO[:, None], self.zeros_GO[:, None], self.bits)
        return codes_GEO.reshape(-1, weight_IO.shape[1])[: len(weight_IO)]

    def values(self, codes_IO: Array) -> NDArray[np.float32]:
        """The weights of codes."""
        values_GEO = _grouped(codes_IO, self.group) + self.zeros_GO[:, None]
        values_GEO *= self.scales_GO[:, None]
        return np.asarray(values_GEO.reshape(-1, codes_IO.shape[1])[: len(codes_IO)], np.float32)


def nearest(weights: Array, scales: Array, zeros: Array, bits: int) -> NDArray[np.int16]:
    """The nearest codes of weights, elementwise."""
    return _steps(weights, scales, zeros, bits).astype(np.int16)


def _steps(weights: Array, scales: Array, zeros: Array, bits: int) -> Array:
    """The nearest codes in the type of the weights."""
    least, most = LIMITS[bits]
    steps = np.asarray(weights / np.where(scales == 0, 1, scales))
    if np.any(zeros):
        steps -= zeros
    np.rint(steps, out=steps)
    return np.clip(steps, least, most, out=steps)


def fit(weight_IO: Array, bits: int, group: int, form: str = "signed", importance_I: Array | None = None) -> Grid:
    """The grid of a weight.

    Args:
        weight_IO: The weight.
        bits: A key of ``LIMITS``.
        group: Inputs that share a scale; 0 = all.
        form: One of ``FORMS``.
        importance_I: How much the squared error of each input counts; the range of each group is then the share of the full
            range that has the least error. None = the full range.

    Raises:
        ValueError: No such bits, group or form, or the weight is not a finite matrix.
    """
    weight_IO = np.asarray(weight_IO)
    if bits not in LIMITS or form not in FORMS or group < 0:
        raise ValueError(f"bits={bits}, form={form!r}, group={group}: bits are 4 or 8, forms {', '.join(FORMS)}")
    if weight_IO.ndim != 2 or not weight_IO.size:
        raise ValueError(f"a weight must be a matrix [in, out] with elements, not {list(weight_IO.shape)}")
    if not np.isfinite(weight_IO).all():
        row, column = np.argwhere(~np.isfinite(weight_IO))[0]
        raise ValueError(f"the weight from input {row} to output {column} is not finite")
    group = min(group or len(weight_IO), len(weight_IO))
    shares = (1.0,) if importance_I is None else SHRINK
    importance_I = np.ones(len(weight_IO)) if importance_I is None else np.asarray(importance_I)
    strips = [
        _strip(weight_IO[:, start : start + STRIP], bits, group, form, importance_I, shares)
        for start in range(0, weight_IO.shape[1], STRIP)
    ]
    scales_GO, zeros_GO = (np.concatenate(arrays, axis=1) for arrays in zip(*strips, strict=True))
    return Grid(bits, group, scales_GO, zeros_GO)


def halves(scales: Array) -> NDArray[np.float32]:
    """Scales rounded to float16, in float32; as they are where the largest is not one of its normal values."""
    scales = scales.astype(np.float32)
    return scales.astype(np.float16).astype(np.float32) if fits_half(scales) else scales


def fits_half(scales: Array) -> bool:
    """Whether float16 holds scales: the largest is one of its normal values."""
    return bool(LEAST_NORMAL <= np.abs(scales).max() <= LARGEST)


def _grouped(weight_IO: Array, group: int) -> Array:
    """Groups of inputs [G, E, O]; padding with the last input does not change the range of the last group."""
    missing = -len(weight_IO) % group
    filled_IO = np.pad(weight_IO, ((0, missing), (0, 0)), "edge") if missing else weight_IO
    return filled_IO.reshape(-1, group, weight_IO.shape[1])


def _strip(
    weight_IO: Array, bits: int, group: int, form: str, importance_I: Array, shares: Sequence[float]
) -> tuple[Array, Array]:
    """Scales and zero points [G, O] of some outputs."""
    weight_GEO = np.ascontiguousarray(_grouped(weight_IO, group))
    range_GO = weight_GEO.min(1), weight_GEO.max(1)
    if len(shares) == 1:
        return _bounds(*range_GO, bits, form, shares[0])
    # Padding counts nothing. Groups do not compete, so each may have its own unit.
    importance_GE = np.pad(importance_I, (0, -len(weight_IO) % group)).reshape(-1, group)
    most_G1 = importance_GE.max(1, keepdims=True)
    importance_GE = (importance_GE / np.where(most_G1 > 0, most_G1, 1)).astype(np.result_type(weight_GEO, np.float32))
    best: list[Array] | None = None
    for share in shares:
        scales_GO, zeros_GO = _bounds(*range_GO, bits, form, share)
        off_GEO = _steps(weight_GEO, scales_GO[:, None], zeros_GO[:, None], bits)
        if zeros_GO.any():
            off_GEO += zeros_GO[:, None]
        off_GEO *= scales_GO[:, None]
        np.subtract(weight_GEO, off_GEO, out=off_GEO)
        off_GEO *= off_GEO
        loss_GO = np.einsum("ge,geo->go", importance_GE, off_GEO)
        if best is None:
            best = [loss_GO, scales_GO, zeros_GO]
            continue
        better_GO = loss_GO < best[0]
        best = [np.where(better_GO, new, old) for new, old in zip((loss_GO, scales_GO, zeros_GO), best, strict=True)]
    assert best is not None
    return best[1], best[2]


def _bounds(low_GO: Array, high_GO: Array, bits: int, form: str, share: float) -> tuple[Array, Array]:
    """Scales and zero points [G, O] of a share of the range."""
    least, most = LIMITS[bits]
    zeros_GO = np.zeros(low_GO.shape, np.float32)
    if form == "symmetric" or (form == "signed" and bits == 8):
        return halves(share * np.maximum(-low_GO, high_GO) / most), zeros_GO
    if form == "signed":
        return halves(share * np.where(-low_GO > high_GO, low_GO, high_GO) / least), zeros_GO
    low_GO, high_GO = share * np.minimum(low_GO, 0), share * np.maximum(high_GO, 0)
    scales_GO = halves((high_GO - low_GO) / (most - least))
    lowest_GO = np.clip(np.rint(low_GO / np.where(scales_GO == 0, 1, scales_GO)), least - most, 0)
    return scales_GO, (lowest_GO - least).astype(np.float32)

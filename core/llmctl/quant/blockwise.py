"""Block-wise weight quantization to 8 or 4 bits, with a scale for every 64 inputs of an output, in numpy.

``int8`` and ``int4`` are symmetric, ``nf4`` has the 16 quantiles of a normal distribution of
https://arxiv.org/abs/2305.14314, appendix E. A group's scale is its largest absolute value, as float32. The layer is in ``linear``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.quant import GROUP
from llmctl.quant.packed import Packed, in_bytes, unpack

CODES = ("int8", "int4", "nf4")
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
LEVELS = {
    "int4": np.arange(-8, 8, dtype="<f4") / np.float32(7),
    "nf4": np.array(NF4, "<f4"),
}
"""Values of the 16 codes, in units of the scale; int4 never uses its first."""


def quantize(weight: NDArray[Any], code: str) -> Packed:
    """The codes nearest to a weight [in, out]."""
    inputs, outputs = weight.shape
    groups = -(-inputs // GROUP)
    rows = np.zeros((outputs, groups * GROUP), "<f4")
    rows[:, :inputs] = weight.T
    grouped = rows.reshape(outputs, groups, GROUP)
    scales = np.abs(grouped).max(axis=-1)
    normal = (grouped / np.where(scales > 0, scales, 1)[..., None]).reshape(rows.shape)
    if code == "int8":
        return Packed(np.rint(normal * 127).astype("i1"), scales, inputs, steps=127)
    if code == "int4":
        index = (np.rint(normal * 7) + 8).astype("u1")
    else:
        midpoints = (LEVELS[code][1:] + LEVELS[code][:-1]) / 2
        index = np.searchsorted(midpoints, normal).astype("u1")
    return Packed(in_bytes(index), scales, inputs, tuple(map(float, LEVELS[code])))


def round_trip(weight: NDArray[Any], code: str) -> NDArray[Any]:
    """The weight [in, out] after quantization and dequantization, in its own dtype."""
    return unpack(quantize(weight, code)).astype(weight.dtype)

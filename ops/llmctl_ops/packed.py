"""Weights of linear layers as the inference kernels read them, and what they compute with them.

A weight [in, out] is cut into panels of ``PANEL`` outputs. This file says what a packed weight is; packing, unpacking and
products are in ``linear.py``. Arrays are numpy's and no paddle is imported, so that a model can run without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PANEL = 16
"""Outputs that lie together; the last panel is filled up with zeros."""

LAYOUT = 1
"""Number of the layout of packed weights as files hold them; raised with every change of where a value lies."""

KINDS = ("float32", "bfloat16", "int8", "int4")


@dataclass(frozen=True)
class PackedLinear:
    """A weight [in, out] in panels.

    Attributes:
        kind: One of ``KINDS``.
        inputs: in.
        outputs: out, without what fills up the last panel.
        group: Inputs that share a scale; 0 = all of them share one per output, or there are no scales.
        data: The codes or values, uint8 bytes in the order of the kernels.
        scales: float32, of integer kinds; None = none.
        zeros: float32, what the code 0 stands for in units of the scale; None = 0 stands for 0.
    """

    kind: str
    inputs: int
    outputs: int
    group: int
    data: NDArray[np.uint8]
    scales: NDArray[np.float32] | None = None
    zeros: NDArray[np.float32] | None = None

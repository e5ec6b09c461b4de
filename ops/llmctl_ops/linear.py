"""Products of rows with packed weights, by compiled kernels. No paddle here.

Callers pack the weights; kernels read the attributes of ``Packed``, in the layout that csrc/cpu/linear.h describes. Shape suffixes:
T rows, I inputs, O outputs.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmctl_ops import library
from llmctl_ops.structs import POINTER, SIZE, Linear

Float = NDArray[np.float32]

LAYOUT = 3
"""Version of the layout that the kernels read; raised with every change of it."""

PANEL = 16
"""Outputs of a panel."""

QUANT_BLOCK = 32
"""Inputs of a row that are quantized with one scale, for integer kinds; a group is a multiple of it."""

KINDS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
"""Kind -> bits of a weight; the order is that of the kernels' enum."""

CODES = ("int8", "int4")
"""Integer kinds: their weights are codes with scales."""

JOINED = len(KINDS)
"""The kernels' number of a weight that consists of others."""


class Packed(Protocol):
    """A weight [I, O] in panels of ``PANEL`` outputs, the last one padded with zeros.

    Attributes:
        kind: One of ``KINDS``.
        inputs: I.
        outputs: O.
        group: Inputs that share a scale, a multiple of ``QUANT_BLOCK``; 0 = all inputs of an output, or no scales.
        data: The values or codes as bytes.
        scales: float32 or float16, for integer kinds; None = floating-point weights.
        zeros: As scales, added to a code before it is multiplied with the scale; None = 0.
        order: int32, for integer kinds: input i of the weight is element order[i] of a row [I]; None = i.
        factors: float32, for integer kinds: multiplied with the inputs of the weight [I]; None = 1.
    """

    kind: str
    inputs: int
    outputs: int
    group: int
    data: NDArray[np.uint8]
    scales: NDArray[np.float32] | NDArray[np.float16] | None
    zeros: NDArray[np.float32] | NDArray[np.float16] | None
    order: NDArray[np.int32] | None
    factors: Float | None


def product(x_TI: Float, packed: Packed, bias_O: Float | None = None) -> Float:
    """x w + bias [T, O]; for integer kinds the rows are quantized to int8 in blocks of ``QUANT_BLOCK``.

    Raises:
        RuntimeError: There is no compiled library.
        ValueError: The rows or the bias do not fit the weight.
        MemoryError: No memory for the kernel's buffer.
    """
    kernel = library.load().kernel("linear", POINTER, POINTER, POINTER, SIZE)
    if kernel is None:
        raise RuntimeError(f"there are no compiled kernels: {library.load().why}")
    if x_TI.ndim != 2 or x_TI.shape[1] != packed.inputs:
        raise ValueError(f"rows {list(x_TI.shape)} do not fit a weight of {packed.inputs} inputs")
    x_TI = np.ascontiguousarray(x_TI, np.float32)
    bias_O = None if bias_O is None else np.ascontiguousarray(bias_O, np.float32)
    y_TO = np.empty((len(x_TI), packed.outputs), np.float32)
    weight = as_struct(packed, bias_O)
    if kernel(ctypes.addressof(weight), x_TI.ctypes.data, y_TO.ctypes.data, len(x_TI)):
        raise MemoryError("a product with a packed weight could not allocate its buffer")
    return y_TO


def as_struct(packed: Packed, bias_O: Float | None = None) -> Linear:
    """The struct that kernels take for a packed weight; the arrays must outlive it.

    Raises:
        ValueError: An array does not have the size or type that the weight's shape and kind require.
    """
    _check_kind(packed.kind, packed.group)
    panels, integer = -(-packed.outputs // PANEL), packed.kind in CODES
    padded = -(-packed.inputs // QUANT_BLOCK) * QUANT_BLOCK if integer else packed.inputs
    groups = panels * (-(-packed.inputs // packed.group) if packed.group else 1) * PANEL
    half = packed.scales is not None and packed.scales.dtype == np.float16
    scale_type = np.float16 if half else np.float32
    arrays = [
        ("data", packed.data, panels * padded * PANEL * KINDS[packed.kind] // 8, np.uint8, True),
        ("scales", packed.scales, groups, scale_type, integer),
        ("zeros", packed.zeros, groups, scale_type, False),
        ("bias", bias_O, packed.outputs, np.float32, False),
        ("order", packed.order, packed.inputs, np.int32, False),
        ("factors", packed.factors, packed.inputs, np.float32, False),
    ]
    for name, array, size, dtype, needed in arrays:
        if array is None and not needed:
            continue
        if array is None or array.size != size or array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(
                f"{name} of a {packed.kind} weight [{packed.inputs}, {packed.outputs}] must be {size} x {dtype.__name__}"
            )
    pointers = [None if array is None else array.ctypes.data for _, array, *_ in arrays]
    if packed.order is not None and not 0 <= packed.order.min() <= packed.order.max() < packed.inputs:
        raise ValueError(f"order of a weight of {packed.inputs} inputs has other indices")
    if not integer and not (packed.order is None and packed.factors is None):
        raise ValueError(f"a {packed.kind} weight takes neither order nor factors")
    return Linear(*pointers, packed.inputs, packed.outputs, packed.group, [*KINDS].index(packed.kind), half)


def join(parts: ctypes.Array[Linear]) -> Linear:
    """The struct of a weight of a decoder's layer whose outputs are those of several weights, one after the other.

    Args:
        parts: Their structs, for the same inputs; the array must outlive the struct.
    """
    outputs = sum(part.outputs for part in parts)
    return Linear(data=ctypes.addressof(parts), inputs=parts[0].inputs, outputs=outputs, kind=JOINED)


def _check_kind(kind: str, group: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    if group < 0 or group % QUANT_BLOCK or (group and kind not in CODES):
        raise ValueError(f"group={group} must be 0 or, for {' and '.join(CODES)}, a multiple of {QUANT_BLOCK}")

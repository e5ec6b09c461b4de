"""Products of rows with packed weights, by compiled kernels. No paddle here.

What a packed weight is belongs to whoever packs it: kernels read what ``Packed`` says, laid out as csrc/cpu/linear.h
describes. Letters: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmctl_ops import library

Float = NDArray[np.float32]

LAYOUT = 1
"""Number of the layout that the kernels read; raised with every change of where a value lies."""

PANEL = 16
"""Outputs that lie together."""

STRETCH = 32
"""Inputs that are rounded together where a row meets integer codes; groups are multiples of it."""

KINDS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
"""Kind -> bits of a weight, in the order of the kernels' numbers for them."""

CODES = ("int8", "int4")
"""Kinds whose weights are codes with scales."""


class Packed(Protocol):
    """A weight [I, O] in panels of ``PANEL`` outputs, the last one filled up with zeros.

    Attributes:
        kind: One of ``KINDS``.
        inputs: I.
        outputs: O.
        group: Inputs that share a scale, a multiple of ``STRETCH``; 0 = all of an output, or there are no scales.
        data: The values or codes as bytes.
        scales: float32, of integer kinds; None = none.
        zeros: float32, what the code 0 stands for in units of the scale; None = 0 stands for 0.
    """

    kind: str
    inputs: int
    outputs: int
    group: int
    data: NDArray[np.uint8]
    scales: Float | None
    zeros: Float | None


def product(x_TI: Float, packed: Packed, bias_O: Float | None = None) -> Float:
    """x w + bias [T, O]; rows that meet integer codes are rounded to 8 bits in stretches of 32.

    Raises:
        RuntimeError: There is no compiled library.
        ValueError: The row or the bias is not as wide as the weight.
        MemoryError: There was no memory for the kernel's buffers.
    """
    kernel = library.load().kernel("linear", *[ctypes.c_void_p] * 3, ctypes.c_int64)
    if kernel is None:
        raise RuntimeError(f"there are no compiled kernels: {library.load().why}")
    if x_TI.ndim != 2 or x_TI.shape[1] != packed.inputs:
        raise ValueError(f"rows {list(x_TI.shape)} do not fit a weight of {packed.inputs} inputs")
    x_TI = np.ascontiguousarray(x_TI, np.float32)
    bias_O = None if bias_O is None else np.ascontiguousarray(bias_O, np.float32)
    y_TO = np.empty((len(x_TI), packed.outputs), np.float32)
    weight = native(packed, bias_O)
    if kernel(ctypes.addressof(weight), x_TI.ctypes.data, y_TO.ctypes.data, len(x_TI)):
        raise MemoryError("a product with a packed weight could not allocate its buffer")
    return y_TO


class Native(ctypes.Structure):
    """``struct Linear`` of csrc/cpu/linear.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("data", "scales", "zeros", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "group")),
        ("kind", ctypes.c_int32),
    )


def native(packed: Packed, bias_O: Float | None = None) -> Native:
    """A packed weight as kernels take it; the arrays must outlive it.

    Raises:
        ValueError: An array has another size or type than the weight's shape and kind ask for.
    """
    _check_kind(packed.kind, packed.group)
    panels, integer = -(-packed.outputs // PANEL), packed.kind in CODES
    padded = -(-packed.inputs // STRETCH) * STRETCH if integer else packed.inputs
    groups = panels * (-(-packed.inputs // packed.group) if packed.group else 1) * PANEL
    wanted = [
        ("data", packed.data, panels * padded * PANEL * KINDS[packed.kind] // 8, np.uint8, True),
        ("scales", packed.scales, groups, np.float32, integer),
        ("zeros", packed.zeros, groups, np.float32, False),
        ("bias", bias_O, packed.outputs, np.float32, False),
    ]
    for name, array, size, dtype, needed in wanted:
        if array is None and not needed:
            continue
        if array is None or array.size != size or array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(
                f"{name} of a {packed.kind} weight [{packed.inputs}, {packed.outputs}] must be {size} x {dtype.__name__}"
            )
    pointers = [None if array is None else array.ctypes.data for _, array, *_ in wanted]
    return Native(*pointers, packed.inputs, packed.outputs, packed.group, [*KINDS].index(packed.kind))


def _check_kind(kind: str, group: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    if group < 0 or group % STRETCH or (group and kind not in CODES):
        raise ValueError(f"group={group} must be 0 or, for {' and '.join(CODES)}, a multiple of {STRETCH}")

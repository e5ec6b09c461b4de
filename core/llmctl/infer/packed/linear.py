"""Packed weights of linear layers: what they are, packing and unpacking them, and products with them, all in numpy.

A weight [in, out] is stored in panels of ``PANEL`` outputs, as compiled kernels read it (``llmctl_ops.linear``); the layout
is described in ops/csrc/cpu/linear.h. ``product`` computes without kernels, and is what they are compared with. No paddle
here, so that a model can run without it. Shape suffixes: T rows, I inputs, O outputs, G groups of inputs that share a scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmctl.quant.methods import grids

Float = NDArray[np.float32]

PANEL = 16
"""Outputs of a panel; the last panel is padded with zeros."""

LAYOUT = 3
"""Version of the layout of packed weights in files; raised with every change. Layout 1 had scales in float32 only, layout 2 no joined
weights."""

BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
"""Kind -> bits of a weight."""

KINDS = tuple(BITS)

STRETCH = 32
"""Inputs of a row that share a scale when it is rounded to 8 bits; groups are multiples of it."""

LEAST_TOP = np.float32(1e-30)
"""Below this largest magnitude 127 / largest overflows; the kernels have the same limit."""

STRIP = 16 * PANEL
"""Outputs that are packed at a time."""

LIMITS = {"int8": (-128, 127), "int4": (-8, 7)}
"""The codes of each integer kind."""

MOST_ZERO = 256
"""Zero points up to this are within 1/16 of a code as float16."""

Scales = NDArray[np.float32] | NDArray[np.float16]


@dataclass(frozen=True)
class PackedLinear:
    """A weight [in, out] in panels.

    Attributes:
        kind: One of ``KINDS``.
        inputs: in.
        outputs: out, without padding.
        group: Inputs that share a scale; 0 = one scale per output, or no scales.
        data: The codes or values, as bytes in the order of the kernels.
        scales: For integer kinds; float16, or float32 where that does not hold them. None = floating-point weights.
        zeros: Zero points in the type of the scales: weight = (code + zero) * scale; None = all are 0.
        order: For integer kinds: input i of the weight is element order[i] of a row; None = i.
        factors: For integer kinds: what the inputs of the weight, in its order, are multiplied with; None = 1.
    """

    kind: str
    inputs: int
    outputs: int
    group: int
    data: NDArray[np.uint8]
    scales: Scales | None = None
    zeros: Scales | None = None
    order: NDArray[np.int32] | None = None
    factors: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class JoinedLinear:
    """A weight [in, out] whose outputs have several kinds.

    Attributes:
        parts: Weights for the same inputs; their outputs follow each other.
    """

    parts: tuple[PackedLinear, ...]

    @property
    def kind(self) -> str:
        """The kinds of the parts, in their order: ``int4+int8``."""
        return "+".join(dict.fromkeys(part.kind for part in self.parts))

    @property
    def inputs(self) -> int:
        """in."""
        return self.parts[0].inputs

    @property
    def outputs(self) -> int:
        """out, without padding."""
        return sum(part.outputs for part in self.parts)


Weight = PackedLinear | JoinedLinear


def joined(parts: Sequence[PackedLinear]) -> Weight:
    """Weights for the same inputs as one."""
    return parts[0] if len(parts) == 1 else JoinedLinear(tuple(parts))


def parts_of(weight: Weight) -> tuple[PackedLinear, ...]:
    """The weights of one kind each that a weight consists of."""
    return weight.parts if isinstance(weight, JoinedLinear) else (weight,)


def bits_of(weights: Iterable[Weight]) -> float:
    """Mean bits of a weight in memory, with scales, zero points, orders, factors and padding."""
    held = [part for weight in weights for part in parts_of(weight)]
    arrays = [getattr(part, name) for part in held for name in ("data", "scales", "zeros", "order", "factors")]
    return (
        8
        * sum(array.nbytes for array in arrays if array is not None)
        / sum(part.inputs * part.outputs for part in held)
    )


def pack(weight_IO: Float, kind: str, group: int = 0, asymmetric: bool = False) -> PackedLinear:
    """A weight in panels; integer kinds are rounded to the nearest code.

    Args:
        weight_IO: The weight.
        kind: One of ``KINDS``.
        group: Inputs that share a scale, a multiple of 32; 0 = one scale per output. Integer kinds only.
        asymmetric: The codes of a group cover the range from its smallest to its largest weight, with zero points; otherwise the
            range is symmetric.

    Raises:
        ValueError: No such kind or group, or the weight is not a finite matrix.
    """
    weight_IO = np.asarray(weight_IO, np.float32)
    _check_kind(kind, group)
    if weight_IO.ndim != 2 or not weight_IO.size:
        raise ValueError(f"a weight must be a matrix [in, out] with elements, not {list(weight_IO.shape)}")
    inputs, outputs = weight_IO.shape
    if outputs > STRIP:
        # Strips that fit the CPU cache take half the time, and no copies of the whole weight.
        strips = (weight_IO[:, start : start + STRIP] for start in range(0, outputs, STRIP))
        return concat_outputs([pack(strip, kind, group, asymmetric) for strip in strips])
    if kind == "float32":
        return PackedLinear(kind, inputs, outputs, 0, _panels(weight_IO, inputs))
    if kind == "bfloat16":
        return PackedLinear(kind, inputs, outputs, 0, _panels(_bfloat16(weight_IO), inputs))
    if kind == "float16":
        return PackedLinear(kind, inputs, outputs, 0, _panels(float16(weight_IO), inputs))
    if not np.isfinite(weight_IO).all():
        raise ValueError(f"a weight with values that are not finite cannot be packed as {kind}")
    return pack_codes(*_nearest(weight_IO, kind, group, asymmetric), kind, group)


def pack_codes(
    codes_IO: NDArray[np.integer],
    scales_GO: Float,
    zeros_GO: Float | None,
    kind: str,
    group: int,
    order_I: NDArray[np.integer] | None = None,
    factors_I: Float | None = None,
) -> PackedLinear:
    """A weight of given codes in panels: weight = (code + zero) * scale.

    Args:
        codes_IO: int8: -128 to 127, int4: -8 to 7.
        scales_GO: One for each group and output; [O] if ``group`` is 0. They are kept as float16 if that changes none, nor a zero.
        zeros_GO: As ``scales_GO``; None = all are 0.
        kind: ``int8`` or ``int4``.
        group: As in ``pack``.
        order_I: As in ``PackedLinear``.
        factors_I: As in ``PackedLinear``.

    Raises:
        ValueError: A code outside its limits, or shapes that do not fit.
    """
    _check_kind(kind, group)
    if kind not in LIMITS:
        raise ValueError(f"{kind} has no codes; kinds with codes are {', '.join(LIMITS)}")
    inputs, outputs = codes_IO.shape
    least, most = LIMITS[kind]
    if codes_IO.min() < least or codes_IO.max() > most:
        raise ValueError(f"codes of {kind} are {least} to {most}, not {codes_IO.min()} to {codes_IO.max()}")
    shape = _groups(inputs, group), outputs
    found = [np.asarray(x, np.float32).reshape(-1, outputs) for x in (scales_GO, zeros_GO) if x is not None]
    if any(x.shape != shape for x in found):
        raise ValueError(f"{kind} with group {group} of {inputs} inputs takes scales {shape}, not {scales_GO.shape}")
    padded = _whole(inputs, STRETCH)
    codes = np.zeros((padded, outputs), np.int8)
    codes[:inputs] = codes_IO
    if kind == "int8":
        data = _panels(codes.reshape(-1, 4, outputs).transpose(0, 2, 1), padded // 4)
    else:
        halves = (codes + 8).astype(np.uint8).reshape(-1, 2, 4, outputs)
        data = _panels((halves[:, 0] | halves[:, 1] << 4).transpose(0, 2, 1), padded // 8)
    with np.errstate(over="ignore"):
        halves = [x.astype(np.float16) for x in found]
    if all(np.array_equal(half, x) for half, x in zip(halves, found, strict=True)):
        found = halves
    scales, *zeros = (_panels(x, shape[0]).view(x.dtype) for x in found)
    order = None if order_I is None else np.ascontiguousarray(order_I, np.int32)
    factors = None if factors_I is None else np.ascontiguousarray(factors_I, np.float32)
    for name, array in (("order", order), ("factors", factors)):
        if array is not None and array.shape != (inputs,):
            raise ValueError(f"{name} of a weight of {inputs} inputs is {list(array.shape)}")
    if order is not None and not np.array_equal(np.sort(order), np.arange(inputs)):
        raise ValueError(f"order is not one of the {inputs} inputs")
    return PackedLinear(kind, inputs, outputs, group, data, scales, zeros[0] if zeros else None, order, factors)


def concat_outputs(parts: Sequence[PackedLinear]) -> PackedLinear:
    """Weights with the same inputs concatenated along their outputs; all but the last fill their panels.

    Raises:
        ValueError: They differ in more than their outputs, or a panel is not full.
    """
    first = parts[0]
    kinds = {(part.kind, part.inputs, part.group, part.zeros is None) for part in parts}
    for name in ("order", "factors"):
        own = getattr(first, name)
        if any(not np.array_equal(getattr(part, name), own) for part in parts):
            raise ValueError(f"weights whose {name} differ do not join")
    if len(kinds) > 1 or any(part.outputs % PANEL for part in parts[:-1]):
        raise ValueError(f"weights of kinds {sorted(kinds)} and {[part.outputs for part in parts]} outputs do not join")
    joined = []
    for name in ("data", "scales", "zeros"):
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            joined.append(None)
            continue
        if name != "data":
            # Types differ where float16 did not hold the scales of one.
            arrays = [array.astype(np.result_type(*(part.scales for part in parts)), copy=False) for array in arrays]
        whole = aligned(sum(array.nbytes for array in arrays)).view(arrays[0].dtype)
        joined.append(np.concatenate(arrays, out=whole))
    outputs = sum(part.outputs for part in parts)
    return PackedLinear(first.kind, first.inputs, outputs, first.group, *joined, first.order, first.factors)


def array_sizes(packed: PackedLinear) -> list[tuple[str, int | None, type[np.generic]]]:
    """Name, elements and type of each array of a weight; None = its kind has no such array. All but data and scales may be absent.

    Raises:
        ValueError: There is no such kind, group or shape.
    """
    _check_kind(packed.kind, packed.group)
    if packed.inputs < 1 or packed.outputs < 1:
        raise ValueError(f"a weight [{packed.inputs}, {packed.outputs}] has no elements")
    panels, codes = -(-packed.outputs // PANEL), packed.kind in LIMITS
    padded = _whole(packed.inputs, STRETCH) if codes else packed.inputs
    scales = panels * _groups(packed.inputs, packed.group) * PANEL if codes else None
    data = panels * padded * PANEL * BITS[packed.kind] // 8
    half = packed.scales is not None and packed.scales.dtype == np.float16
    scale_type: type[np.generic] = np.float16 if half else np.float32
    inputs = packed.inputs if codes else None
    return [
        ("data", data, np.uint8),
        ("scales", scales, scale_type),
        ("zeros", scales, scale_type),
        ("order", inputs, np.int32),
        ("factors", inputs, np.float32),
    ]


def unpack(packed: Weight) -> Float:
    """The weight [I, O] for rows as they are: order and factors are part of it."""
    if isinstance(packed, JoinedLinear):
        return np.concatenate([unpack(part) for part in packed.parts], axis=1)
    weight_IO = unpack_codes(packed)
    if packed.factors is not None:
        weight_IO *= packed.factors[:, None]
    if packed.order is None:
        return weight_IO
    ordered = np.empty_like(weight_IO)
    ordered[packed.order] = weight_IO
    return ordered


def rows(packed: PackedLinear, outputs: NDArray[np.integer]) -> Float:
    """The weights of these outputs, each as a row of inputs [T, I]."""
    if not len(outputs):
        return np.empty((0, packed.inputs), np.float32)
    panel, lane = np.divmod(np.asarray(outputs), PANEL)
    chosen, index = np.unique(panel, return_inverse=True)
    parts = {name: getattr(packed, name) for name in ("data", "scales", "zeros")}
    panels = -(-packed.outputs // PANEL)
    of_panels = {
        name: None if array is None else np.ascontiguousarray(array.reshape(panels, -1)[chosen]).reshape(-1)
        for name, array in parts.items()
    }
    weight_IO = unpack(replace(packed, outputs=len(chosen) * PANEL, **of_panels))
    return np.ascontiguousarray(weight_IO[:, index * PANEL + lane].T)


def unpack_codes(packed: Weight) -> Float:
    """The weight [I, O] for rows that ``seen`` gives: in the order of its own inputs, without factors."""
    if isinstance(packed, JoinedLinear):
        return np.concatenate([unpack_codes(part) for part in packed.parts], axis=1)
    inputs, outputs, panels = packed.inputs, packed.outputs, -(-packed.outputs // PANEL)
    if packed.kind == "float32":
        values = packed.data.view(np.float32).reshape(panels, inputs, PANEL)
    elif packed.kind == "float16":
        values = packed.data.view(np.float16).reshape(panels, inputs, PANEL).astype(np.float32)
    elif packed.kind == "bfloat16":
        values = packed.data.view(np.uint16).reshape(panels, inputs, PANEL).astype(np.uint32) << 16
        values = values.view(np.float32)
    else:
        values = _codes(packed, panels).astype(np.float32)
        groups = np.arange(inputs) // (packed.group or inputs)
        scales, zeros = (
            None if x is None else x.reshape(panels, -1, PANEL)[:, groups].astype(np.float32)
            for x in (packed.scales, packed.zeros)
        )
        values = (values if zeros is None else values + zeros) * scales
    return np.ascontiguousarray(values.transpose(1, 0, 2).reshape(inputs, -1)[:, :outputs])


def codes_of(packed: PackedLinear) -> tuple[NDArray[np.int8], Float, Float]:
    """Codes [I, O], scales [G, O] and zero points [G, O] of an integer weight, as ``pack_codes`` takes them."""
    inputs, outputs, panels = packed.inputs, packed.outputs, -(-packed.outputs // PANEL)

    def whole(values: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
        return np.ascontiguousarray(values.transpose(1, 0, 2).reshape(rows, -1)[:, :outputs])

    assert packed.scales is not None, "only integer weights have codes"
    groups = _groups(inputs, packed.group)
    scales = whole(packed.scales.reshape(panels, groups, PANEL), groups).astype(np.float32)
    zeros = np.zeros_like(scales)
    if packed.zeros is not None:
        zeros = whole(packed.zeros.reshape(panels, groups, PANEL), groups).astype(np.float32)
    return whole(_codes(packed, panels), inputs).astype(np.int8), scales, zeros


def product(x_TI: Float, packed: PackedLinear, bias_O: Float | None = None) -> Float:
    """x w + bias [T, O]; for integer kinds rows are rounded to 8 bits (``rounded``).

    Raises:
        ValueError: The rows are not as wide as the weight.
    """
    if x_TI.ndim != 2 or x_TI.shape[1] != packed.inputs:
        raise ValueError(f"rows {list(x_TI.shape)} do not fit a weight of {packed.inputs} inputs")
    x_TI = np.asarray(x_TI, np.float32)
    y_TO = seen(x_TI, packed) @ unpack_codes(packed)
    return y_TO if bias_O is None else y_TO + bias_O


def seen(x_TI: Float, packed: PackedLinear) -> Float:
    """Rows as the codes of a weight meet them: in its order, times its factors, rounded; rows of other kinds as they are."""
    if packed.kind not in LIMITS:
        return x_TI
    x_TI = x_TI if packed.order is None else x_TI[:, packed.order]
    return rounded(x_TI if packed.factors is None else x_TI * packed.factors)


def float16(values: Float) -> NDArray[np.float16]:
    """The nearest float16, ties to even.

    Raises:
        ValueError: A finite value is beyond its range.
    """
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float16)
    if (np.isinf(nearest) & np.isfinite(values)).any():
        raise ValueError(
            f"float16 ends at {grids.LARGEST:g}, and a value of {np.abs(values[np.isfinite(values)]).max():g} is beyond"
        )
    return nearest


def rounded(x_TI: Float) -> Float:
    """Rows rounded to 8 bits as for integer kinds: every 32 values in units of their largest magnitude / 127, or zeros if that is
    at most ``LEAST_TOP``."""
    rows, inputs = x_TI.shape
    padded = np.zeros((rows, _whole(inputs, STRETCH)), np.float32)
    padded[:, :inputs] = x_TI
    stretches = padded.reshape(rows, padded.shape[1] // STRETCH, STRETCH)
    most = np.abs(stretches).max(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(most > LEAST_TOP, np.float32(127) / most, np.float32(0))
        codes = np.rint(stretches * inverse)
        return (codes * (most / np.float32(127))).reshape(padded.shape)[:, :inputs]


def aligned(size: int) -> NDArray[np.uint8]:
    """This many bytes, aligned to a cache line, as kernels read them fastest."""
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


def _check_kind(kind: str, group: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    if group < 0 or group % STRETCH or (group and kind not in LIMITS):
        raise ValueError(f"group={group} must be 0 or, for {' and '.join(LIMITS)}, a multiple of {STRETCH}")


def _whole(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _groups(inputs: int, group: int) -> int:
    return -(-inputs // group) if group else 1


def _panels(values: NDArray[np.generic], steps: int) -> NDArray[np.uint8]:
    """[steps, O, ...] -> bytes of [panels, steps, PANEL, ...]."""
    outputs, rest = values.shape[1], values.shape[2:]
    panels = -(-outputs // PANEL)
    size = panels * steps * PANEL * values.dtype.itemsize * int(np.prod(rest))
    data = aligned(size)
    target = data.view(values.dtype).reshape(panels, steps, PANEL, *rest)
    full = outputs // PANEL
    target[:full] = values[:, : full * PANEL].reshape(steps, full, PANEL, *rest).swapaxes(0, 1)
    if full < panels:
        target[full] = 0
        target[full, :, : outputs - full * PANEL] = values[:, full * PANEL :]
    return data


def _bfloat16(values: Float) -> NDArray[np.uint16]:
    """The nearest bfloat16, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    nearest = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest)


def _nearest(
    weight_IO: Float, kind: str, group: int, asymmetric: bool
) -> tuple[NDArray[np.integer], Float, Float | None]:
    """Codes, scales and zeros of each group and output."""
    if not asymmetric:
        grid = grids.fit(weight_IO, BITS[kind], group)
        return grid.codes(weight_IO), grid.scales_GO, None
    inputs, outputs = weight_IO.shape
    group = group or inputs
    # Padding with the last input does not change the range of the last group.
    filled = np.pad(weight_IO, ((0, -inputs % group), (0, 0)), "edge").reshape(-1, group, outputs)
    low, high = filled.min(1), filled.max(1)
    least, most = LIMITS[kind]
    scales = (high - low) / (most - least)
    alike = scales <= 0
    scales = np.where(alike, np.where(low == 0, 1, np.abs(low)), scales).astype(np.float32)
    scales = grids.halves(scales)
    zeros = low / np.where(scales == 0, 1, scales) - np.where(alike, 0, least).astype(np.float32)
    if grids.fits_half(scales) and np.abs(zeros).max() <= MOST_ZERO:
        zeros = zeros.astype(np.float16).astype(np.float32)
    codes = np.rint(filled / np.where(scales == 0, 1, scales)[:, None] - zeros[:, None])
    codes = codes.clip(least, most).astype(np.int8).reshape(-1, outputs)[:inputs]
    return codes, scales, zeros


def _codes(packed: PackedLinear, panels: int) -> NDArray[np.int8]:
    """[panels, I, PANEL]."""
    data = packed.data
    if packed.kind == "int8":
        steps = data.view(np.int8).reshape(panels, -1, PANEL, 4)
    else:
        pairs = data.reshape(panels, -1, 1, PANEL, 4)
        steps = np.concatenate([pairs & 15, pairs >> 4], 2).astype(np.int8) - np.int8(8)
        steps = steps.reshape(panels, -1, PANEL, 4)
    return steps.transpose(0, 1, 3, 2).reshape(panels, -1, PANEL)[:, : packed.inputs]

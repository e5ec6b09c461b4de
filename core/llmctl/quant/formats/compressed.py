"""compressed-tensors checkpoints with integer weights: llm-compressor's.

Linears may have 4 bits beside others of 8. ``pack-quantized``: weight_packed int32 [O, I*b/32] has codes along the inputs, plus 2^(b-1), in
words without gaps; weight_shape [2]. ``int-quantized``: weight int8 [O, I]. Both: weight_scale [O, G]; weight_zero_point int8 [O, G], or int32 [O*b/32, G]; weight_g_idx int32 [I].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.quant.formats.codes import (
    FLOATS,
    INDICES,
    WORD,
    WORDS,
    Codes,
    Part,
    check_part,
    check_scales,
    check_shape,
    consecutive,
    half_scales,
    pack_words,
    unpack_words,
)

PACKED = ("weight_packed", "weight_scale", "weight_shape")
PLAIN = ("weight", "weight_scale")
OPTIONAL = ("weight_zero_point", "weight_g_idx")


UNUSED = (
    "input_scale", "input_zero_point", "output_scale", "output_zero_point", "input_global_scale", "activation_scale", "input_scale_ub",
    "k_scale", "v_scale", "q_scale", "kv_scale", "k_zero_point", "v_zero_point", "q_zero_point",
)  # fmt: skip
"""Tensors of activations, whose rows are rounded by scales of their own, and of the KV cache, which is kept as ``--kv`` says."""


def check(
    parts: Mapping[str, Part], shape: tuple[int, ...], allowed: Sequence[int], sizes: Sequence[int]
) -> tuple[int, int]:
    """Outputs and inputs of a linear, from the headers of its tensors.

    Args:
        parts: Its tensors, by the names in ``PACKED`` or ``PLAIN``, and ``OPTIONAL``.
        shape: The values of ``weight_shape``, or the shape of ``weight``.
        allowed: Bits that codes of the checkpoint have.
        sizes: Inputs that share a scale in the checkpoint; 0 = all of an output, or all weights; -1 = as the tensors say.

    Raises:
        ValueError: The tensors contradict each other.
    """
    if "weight_shape" in parts:
        check_part("weight_shape", parts["weight_shape"], (2,), INDICES)
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"the weight is {list(shape)}, expected a matrix")
    outputs, inputs = shape
    packed = "weight_packed" in parts
    widths = [_words(inputs, bits) for bits in allowed] if packed else [inputs]
    name, dtypes = ("weight_packed", WORDS) if packed else ("weight", ("int8",))
    _check_one_of(name, parts[name], [(outputs, width) for width in widths], dtypes)
    single = [(1,), ()] if 0 in sizes else []
    stated = parts["weight_scale"].shape
    scales = [stated if size < 0 else (outputs, inputs // size if size else 1) for size in sizes]
    _check_one_of("weight_scale", parts["weight_scale"], [*scales, *single], FLOATS)
    if "weight_g_idx" in parts:
        check_part("weight_g_idx", parts["weight_g_idx"], (inputs,), INDICES)
    return outputs, inputs


def _check_one_of(name: str, part: Part, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> None:
    check_part(name, part, part.shape if part.shape in shapes else shapes[0], dtypes)


def read(parts: Mapping[str, NDArray[Any]], allowed: Sequence[int]) -> Codes:
    """The codes of one linear.

    Args:
        parts: Its tensors, by the names in ``PACKED`` or ``PLAIN``, and ``OPTIONAL``.
        allowed: Bits that codes of the checkpoint have, in ascending order.

    Raises:
        ValueError: The tensors contradict each other.
    """
    if "weight_packed" in parts:
        words = parts["weight_packed"]
        outputs, inputs = (int(size) for size in parts["weight_shape"])
        bits = next((bits for bits in allowed if words.shape[-1] == _words(inputs, bits)), allowed[0])
        check_shape("weight_packed", words, (outputs, _words(inputs, bits)))
        codes_OI = unpack_words(words, bits, 1)[:, :inputs] - np.int16(2 ** (bits - 1))
    else:
        bits, codes_OI = 8, parts["weight"].astype(np.int16)
        outputs, inputs = codes_OI.shape
    scales = check_scales("weight_scale", parts["weight_scale"])
    scales = np.broadcast_to(scales.reshape(1, 1), (outputs, 1)) if scales.size == 1 else scales
    groups = scales.shape[1] if scales.ndim == 2 else 0
    if not groups or inputs % groups:
        raise ValueError(f"weight_scale is {list(scales.shape)} for a weight of {outputs} outputs and {inputs} inputs")
    check_shape("weight_scale", scales, (outputs, groups))
    group_I = consecutive(inputs, inputs // groups)
    # compressed-tensors takes -1 for groups that were never set: they are consecutive.
    if "weight_g_idx" in parts and not (parts["weight_g_idx"] == -1).any():
        check_shape("weight_g_idx", parts["weight_g_idx"], (inputs,))
        group_I = parts["weight_g_idx"].astype(np.int64)
        if group_I.min() < 0 or group_I.max() >= groups:
            raise ValueError(f"weight_g_idx names groups {group_I.min()} to {group_I.max()} of {groups}")
    zeros = _zeros(parts.get("weight_zero_point"), bits, outputs, groups)
    # Codes of 5 to 7 bits are some of those of 8.
    bits = bits if bits <= 4 else 8
    return Codes(bits, np.ascontiguousarray(codes_OI), np.ascontiguousarray(scales), zeros, group_I)


def _words(values: int, bits: int) -> int:
    return -(-values * bits // WORD)


def of_outputs(parts: Mapping[str, NDArray[Any]], outputs: slice, allowed: Sequence[int]) -> dict[str, NDArray[Any]]:
    """The tensors of some outputs of a linear, from a whole number of words to another."""
    found, bits = dict(parts), allowed[0]
    if "weight_packed" in parts:
        width, inputs = parts["weight_packed"].shape[-1], int(parts["weight_shape"][1])
        bits = next((bits for bits in allowed if width == _words(inputs, bits)), bits)
    for name in ("weight", "weight_packed", "weight_scale", "weight_zero_point"):
        values = parts.get(name)
        if values is not None and values.size > 1:
            packed = name == "weight_zero_point" and values.dtype != np.int8
            found[name] = (
                values[outputs.start * bits // WORD : _words(outputs.stop, bits)] if packed else values[outputs]
            )
    if "weight_shape" in parts:
        found["weight_shape"] = np.array([outputs.stop - outputs.start, parts["weight_shape"][1]])
    return found


def write(codes: Codes, packed: bool, symmetric: bool) -> dict[str, NDArray[Any]]:
    """The tensors of one linear.

    Args:
        codes: Its codes, of groups of one size.
        packed: Whether codes are packed into words (``pack-quantized``), or int8 (``int-quantized``).
        symmetric: Whether there are no zero points.

    Raises:
        ValueError: Scales are no values of float16.
    """
    parts: dict[str, NDArray[Any]] = {"weight_scale": half_scales(codes.scales_OG)}
    if not packed:
        zeros = {} if symmetric else {"weight_zero_point": (-codes.zeros_OG).astype(np.int8)}
        return {"weight": codes.codes_OI.astype(np.int8), **parts, **zeros}
    half, unit = 2 ** (codes.bits - 1), WORD // codes.bits
    outputs, inputs = codes.codes_OI.shape
    filled = np.pad(codes.codes_OI + half, ((0, 0), (0, -inputs % unit)))
    parts["weight_packed"] = pack_words(filled.astype(np.uint8), codes.bits, 1)
    parts["weight_shape"] = np.array([outputs, inputs], np.int64)
    if not symmetric:
        zeros = np.pad(half - codes.zeros_OG, ((0, -outputs % unit), (0, 0)))
        parts["weight_zero_point"] = pack_words(zeros.astype(np.uint8), codes.bits, 0)
    return parts


def _zeros(stored: NDArray[Any] | None, bits: int, outputs: int, groups: int) -> NDArray[np.float32]:
    if stored is None:
        return np.zeros((outputs, groups), np.float32)
    if stored.dtype == np.int8:
        values = np.broadcast_to(stored.reshape(1, 1), (outputs, 1)) if stored.size == 1 else stored
    else:
        check_shape("weight_zero_point", stored, (_words(outputs, bits), groups))
        values = unpack_words(stored, bits, 0)[:outputs] - np.int16(2 ** (bits - 1))
    check_shape("weight_zero_point", values, (outputs, groups))
    return -np.ascontiguousarray(values, np.float32)

"""GPTQ checkpoints: AutoGPTQ's, GPTQModel's and those of transformers.

qweight int32 [I*b/32, O] has codes along the inputs, qzeros int32 [G, O*b/32] along the outputs, scales [G, O], g_idx int32 [I]
the group of each input. ``gptq`` (v1) stores zero - 1 modulo 2^b, ``gptq_v2`` stores zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
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
    consecutive,
    half_scales,
    pack_words,
    unpack_words,
)

PARTS = ("qweight", "qzeros", "scales")
OPTIONAL = ("g_idx",)


def check(parts: Mapping[str, Part], bits: int, group: int) -> tuple[int, int]:
    """Outputs and inputs of a linear, from the headers of its tensors.

    Args:
        parts: Its tensors, by the names in ``PARTS`` and ``OPTIONAL``.
        bits: 2, 3, 4 or 8.
        group: Inputs of a group; -1 = one group.

    Raises:
        ValueError: The tensors contradict each other.
    """
    outputs, inputs = _size(parts["qweight"].shape, bits)
    groups = -(-inputs // group) if group > 0 else 1
    check_part("qweight", parts["qweight"], (inputs * bits // WORD, outputs), WORDS)
    check_part("scales", parts["scales"], (groups, outputs), FLOATS)
    check_part("qzeros", parts["qzeros"], (groups, -(-outputs * bits // WORD)), WORDS)
    if "g_idx" in parts:
        check_part("g_idx", parts["g_idx"], (inputs,), INDICES)
    return outputs, inputs


def _size(shape: tuple[int, ...], bits: int) -> tuple[int, int]:
    if len(shape) != 2 or shape[0] * WORD % bits:
        raise ValueError(f"qweight is {list(shape)}, no words of {bits} bits")
    return shape[1], shape[0] * WORD // bits


def read(parts: Mapping[str, NDArray[Any]], bits: int, group: int, v2: bool, symmetric: bool, name: str) -> Codes:
    """The codes of one linear.

    Args:
        parts: Its tensors, which fit each other as ``check`` says.
        bits: 2, 3, 4 or 8.
        group: Inputs of a group; -1 = one group.
        v2: Whether zero points are stored as they are.
        symmetric: Whether zero points are all 2^(bits-1).
        name: The linear, for warnings.

    Raises:
        ValueError: Values contradict each other.
    """
    words, qzeros = parts["qweight"], parts["qzeros"]
    outputs, inputs = _size(words.shape, bits)
    groups = len(qzeros)
    group_I = consecutive(inputs, group)
    if "g_idx" in parts:
        group_I = parts["g_idx"].astype(np.int64)
        if group_I.min() < 0 or group_I.max() >= groups:
            raise ValueError(f"g_idx names groups {group_I.min()} to {group_I.max()} of {groups}")
    zeros_GO = unpack_words(qzeros, bits, 1)[:, :outputs]
    if not v2:
        if not symmetric and (unclear := int((zeros_GO == 2**bits - 1).sum())):
            warnings.warn(
                f"{name} has {unclear} zero points that gptq (v1) files store ambiguously; they are read as 0, other tools may "
                f"read {2**bits}. Check the model's output, or quantize it again with checkpoint_format gptq_v2",
                UserWarning, stacklevel=2,
            )  # fmt: skip
        zeros_GO = (zeros_GO + 1) & (2**bits - 1)
    half = 2 ** (bits - 1)
    found = np.unique(zeros_GO)
    if symmetric and len(found) == 1 and abs(int(found[0]) - half) == 1:
        raise ValueError(
            f"its zero points are all {found[0]}, and those of symmetric codes are {half}: the files are of checkpoint_format "
            f"{'gptq' if v2 else 'gptq_v2'}"
        )
    codes_OI = np.ascontiguousarray((unpack_words(words, bits, 0) - half).T, np.int16)
    scales_OG = check_scales("scales", parts["scales"].T)
    return Codes(bits, codes_OI, scales_OG, np.ascontiguousarray(half - zeros_GO.T, np.float32), group_I)


def of_outputs(parts: Mapping[str, NDArray[Any]], outputs: slice, bits: int) -> dict[str, NDArray[Any]]:
    """The tensors of some outputs of a linear, from a whole number of words to another."""
    words = slice(outputs.start * bits // WORD, -(-outputs.stop * bits // WORD))
    cuts = {"qweight": outputs, "scales": outputs, "qzeros": words}
    return {name: values[:, cuts[name]] if name in cuts else values for name, values in parts.items()}


def write(codes: Codes, v2: bool) -> dict[str, NDArray[Any]]:
    """The tensors of one linear.

    Args:
        codes: Its codes, which fill words.
        v2: Whether zero points are stored as they are.

    Raises:
        ValueError: Scales are no values of float16, or v1 cannot hold a zero point of 0.
    """
    half = 2 ** (codes.bits - 1)
    zeros_GO = (half - codes.zeros_OG.T).astype(np.int16)
    if not v2 and zeros_GO.min() < 1:
        raise ValueError("it has zero points of 0, which gptq (v1) files store ambiguously")
    return {
        "qweight": pack_words((codes.codes_OI.T + half).astype(np.uint8), codes.bits, 0),
        "qzeros": pack_words((zeros_GO if v2 else zeros_GO - 1).astype(np.uint8), codes.bits, 1),
        "scales": half_scales(np.ascontiguousarray(codes.scales_OG.T)),
        "g_idx": codes.group_I.astype(np.int32),
    }

"""AWQ checkpoints in the GEMM and GEMV layouts: AutoAWQ's and those of transformers.

GEMM: qweight int32 [I, O/8] and qzeros int32 [G, O/8] have eight outputs in a word, in the order 0 2 4 6 1 3 5 7; scales [G, O].
GEMV: qweight int32 [O, I/8] has eight inputs in a word, in their order, qzeros int32 [O, W] eight groups, padded; scales [O, 8W].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.quant.formats.codes import (
    FLOATS,
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
BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def check(parts: Mapping[str, Part], group: int, rows: bool = False) -> tuple[int, int]:
    """Outputs and inputs of a linear, from the headers of its tensors.

    Args:
        parts: Its tensors, by the names in ``PARTS``.
        group: Inputs of a group; -1 = one group.
        rows: Whether the layout is GEMV.

    Raises:
        ValueError: The tensors contradict each other.
    """
    stored = parts["qweight"].shape
    if len(stored) != 2:
        raise ValueError(f"qweight is {list(stored)}, expected a matrix")
    check_part("qweight", parts["qweight"], stored, WORDS)
    if rows:
        outputs, inputs = stored[0], stored[1] * len(ORDER)
        width = max(-(-_groups(inputs, group) // len(ORDER)), *parts["qzeros"].shape[1:])
        check_part("qzeros", parts["qzeros"], (outputs, width), WORDS)
        check_part("scales", parts["scales"], (outputs, width * len(ORDER)), FLOATS)
        return outputs, inputs
    inputs, words = stored
    groups = _groups(inputs, group)
    check_part("scales", parts["scales"], (groups, words * len(ORDER)), FLOATS)
    check_part("qzeros", parts["qzeros"], (groups, words), WORDS)
    return words * len(ORDER), inputs


def _groups(inputs: int, group: int) -> int:
    return -(-inputs // group) if group > 0 else 1


def read(parts: Mapping[str, NDArray[Any]], group: int, rows: bool = False) -> Codes:
    """The codes of one linear.

    Args:
        parts: Its tensors, which fit each other as ``check`` says.
        group: Inputs of a group; -1 = one group.
        rows: Whether the layout is GEMV.

    Raises:
        ValueError: A scale is not finite.
    """
    half = 2 ** (BITS - 1)
    if rows:
        codes_OI = unpack_words(parts["qweight"], BITS, 1) - np.int16(half)
        inputs = codes_OI.shape[1]
        groups = _groups(inputs, group)
        zeros_OG = np.ascontiguousarray(half - unpack_words(parts["qzeros"], BITS, 1)[:, :groups], np.float32)
        scales_OG = check_scales("scales", parts["scales"][:, :groups])
        return Codes(BITS, np.ascontiguousarray(codes_OI), scales_OG, zeros_OG, consecutive(inputs, group))
    inputs = len(parts["qweight"])
    codes_OI = np.ascontiguousarray((_in_order(parts["qweight"]) - half).T, np.int16)
    zeros_OG = np.ascontiguousarray(half - _in_order(parts["qzeros"]).T, np.float32)
    return Codes(BITS, codes_OI, check_scales("scales", parts["scales"].T), zeros_OG, consecutive(inputs, group))


def of_outputs(parts: Mapping[str, NDArray[Any]], outputs: slice, rows: bool = False) -> dict[str, NDArray[Any]]:
    """The tensors of some outputs of a linear, from a whole number of words to another."""
    if rows:
        return {name: values[outputs] for name, values in parts.items()}
    words = slice(outputs.start // len(ORDER), outputs.stop // len(ORDER))
    return {name: values[:, outputs if name == "scales" else words] for name, values in parts.items()}


def write(codes: Codes) -> dict[str, NDArray[Any]]:
    """The tensors of one linear, whose codes fill words.

    Raises:
        ValueError: Scales are no values of float16.
    """
    half = 2 ** (BITS - 1)
    return {
        "qweight": _in_words((codes.codes_OI.T + half).astype(np.uint8)),
        "qzeros": _in_words((half - codes.zeros_OG.T).astype(np.uint8)),
        "scales": half_scales(np.ascontiguousarray(codes.scales_OG.T)),
    }


def _in_words(values: NDArray[np.uint8]) -> NDArray[np.int32]:
    rows = values.reshape(len(values), -1, len(ORDER))
    return pack_words(rows[:, :, ORDER].reshape(len(values), -1), BITS, 1)


def _in_order(words: NDArray[Any]) -> NDArray[np.int16]:
    fields = unpack_words(words, BITS, 1).reshape(len(words), -1, len(ORDER))
    values = np.empty_like(fields)
    values[:, :, ORDER] = fields
    return values.reshape(len(words), -1)

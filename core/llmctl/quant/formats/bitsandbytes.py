"""bitsandbytes' checkpoints. Of 4 bits (nf4, fp4): two codes in a byte, a scale for each block, which may be codes with scales themselves.
Of 8 bits: weight int8 [O, I], and the largest magnitude of each output, SCB float32 [O].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.io.json_object import parse_json
from llmctl.quant.formats.codes import FLOATS, INDICES, Codes, Part, check_part, check_scales, consecutive

PARTS = ("absmax", "quant_map")
NESTED = ("nested_absmax", "nested_quant_map")
STATES = tuple(f"quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
"""What stands beside a weight's name, after a dot."""

EIGHT = ("weight", "SCB")
"""The tensors of a linear of 8 bits."""

LAYOUT = "weight_format"
"""The number of the layout of a linear of 8 bits; 0, or none, = rows."""

DTYPES = ("float32", "float16", "bfloat16")


def check_eight(parts: Mapping[str, Part]) -> tuple[int, int]:
    """Outputs and inputs of a linear of 8 bits, from the headers of its tensors.

    Raises:
        ValueError: The tensors contradict each other.
    """
    shape = parts["weight"].shape
    check_part("weight", parts["weight"], shape, ("int8",))
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"weight is {list(shape)}, expected a matrix")
    check_part("SCB", parts["SCB"], shape[:1], FLOATS)
    if LAYOUT in parts:
        layout = parts[LAYOUT]
        check_part(LAYOUT, layout, layout.shape if layout.shape in ((), (1,)) else (1,), ("uint8", *INDICES))
    return shape[0], shape[1]


def read_eight(parts: Mapping[str, NDArray[Any]]) -> Codes:
    """The codes of a linear of 8 bits, whose tensors passed ``check_eight``.

    Raises:
        ValueError: A scale is not finite, or the layout is one of a GPU.
    """
    if LAYOUT in parts and (number := int(parts[LAYOUT].reshape(-1)[0])):
        raise ValueError(f"{LAYOUT} is {number}, a layout for a GPU; only rows, 0, are read")
    scales_OG = check_scales("SCB", parts["SCB"]).reshape(-1, 1) / np.float32(127)
    codes_OI = parts["weight"].astype(np.int16)
    return Codes(8, codes_OI, scales_OG, np.zeros_like(scales_OG), consecutive(codes_OI.shape[1], 0))


@dataclass(frozen=True)
class State:
    """What a weight's ``quant_state`` says.

    Attributes:
        shape: Of the weight [out, in].
        dtype: Type that the values have.
        block: Values that share a scale.
        nested_block: Scales that share a scale; 0 = scales are floats.
        offset: Added to nested scales.
    """

    shape: tuple[int, int]
    dtype: str
    block: int
    nested_block: int = 0
    offset: float = 0.0

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-prod(self.shape) // self.block)


def read_state(raw: NDArray[np.uint8]) -> State:
    """The state in a tensor of bytes.

    Raises:
        ValueError: It is not what bitsandbytes writes.
    """
    try:
        content = parse_json(raw.tobytes())
        nested = content.get("nested_blocksize")
        shape = tuple(int(size) for size in content["shape"])
        state = State(
            shape, str(content["dtype"]), int(content["blocksize"]),
            int(nested) if nested else 0, float(content["nested_offset"]) if nested else 0.0,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"quant_state is no description of a weight ({type(error).__name__}: {error})") from None
    if len(shape) != 2 or min(shape) < 1 or state.block < 1 or state.nested_block < 0 or state.dtype not in DTYPES:
        raise ValueError(f"quant_state describes no matrix of blocks: {content}")
    return state


def check_sizes(state: State, sizes: Mapping[str, int]) -> None:
    """Checks the elements of the parts; ``weight`` is that of the codes.

    Raises:
        ValueError: One is absent, or has another number of elements.
    """
    nested = -(-state.blocks // state.nested_block) if state.nested_block else 0
    wanted = {"weight": -(-prod(state.shape) // 2), "absmax": state.blocks, "quant_map": 16}
    if nested:
        wanted |= {"nested_absmax": nested, "nested_quant_map": 256}
    for name, size in wanted.items():
        if sizes.get(name) != size:
            raise ValueError(f"{name} has {sizes.get(name, 'no')} elements, quant_state asks for {size}")


def scales_of(state: State, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The scale of each block."""
    absmax = parts["absmax"].reshape(-1)
    if not state.nested_block:
        return absmax.astype(np.float32)
    outer = np.repeat(parts["nested_absmax"].reshape(-1).astype(np.float32), state.nested_block)[: len(absmax)]
    levels = parts["nested_quant_map"].reshape(-1).astype(np.float32)
    return np.asarray(levels[absmax] * outer + np.float32(state.offset), np.float32)


def values_of(
    state: State,
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    levels: NDArray[np.float32],
    begin: int,
    end: int,
) -> NDArray[np.float32]:
    """Values from one to another, of all in the order of rows."""
    at = np.arange(begin, end)
    pair = codes.reshape(-1)[at // 2]
    code = np.where(at % 2 == 0, pair >> 4, pair & 15)
    return np.asarray(levels.reshape(-1).astype(np.float32)[code] * scales[at // state.block], np.float32)

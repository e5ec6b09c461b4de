"""Checkpoints that bitsandbytes quantized to 4 bits: their weights under the names and with the values of the model in floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmctl.checkpoint.formats.dtypes import cast, round_bfloat16, widen
from llmctl.checkpoint.formats.tensor_info import CHUNK_BYTES, TensorInfo
from llmctl.errors import CheckpointError
from llmctl.quant.formats import bitsandbytes as blocks
from llmctl.quant.formats.bitsandbytes import NESTED, PARTS, STATES, State
from llmctl.quant.formats.codes import Codes, consecutive


@dataclass(frozen=True)
class BlockTensor(TensorInfo):
    """A weight [out, in] in blocks, in the type that it was quantized from.

    Attributes:
        name: Its name.
        state: Its sizes.
        parts: Its stored tensors; ``weight`` are the codes.
    """

    name: str = ""
    outputs_first: ClassVar[bool] = True
    state: State = field(default_factory=lambda: State((1, 1), "float32", 64))
    parts: Mapping[str, TensorInfo] = field(default_factory=dict)

    def codes(self) -> Codes | None:
        """The codes, with what they stand for; None = blocks are not within rows."""
        (outputs, inputs), block = self.shape, self.state.block
        if inputs % block or inputs % 2:
            return None
        arrays = {key: _floats(info) for key, info in self.parts.items()}
        pairs = arrays["weight"].reshape(outputs, -1)
        codes_OI = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(outputs, inputs).astype(np.int16) - np.int16(8)
        scales_OG = blocks.scales_of(self.state, arrays).reshape(outputs, -1)
        levels = tuple(map(float, arrays["quant_map"].reshape(-1)))
        return Codes(
            4, codes_OI, scales_OG, np.zeros_like(scales_OG), consecutive(inputs, block), levels, self.state.dtype
        )

    def read_into(self, out: NDArray[Any], dtype: str, start: int = 0) -> None:
        """As ``TensorInfo.read_into``."""
        arrays = {key: _floats(info) for key, info in self.parts.items()}
        scales, inputs = blocks.scales_of(self.state, arrays), prod(self.shape[1:])
        step = max(1, CHUNK_BYTES // (4 * inputs))
        for low in range(0, len(out), step):
            high = min(low + step, len(out))
            span = (start + low) * inputs, (start + high) * inputs
            values = blocks.values_of(self.state, arrays["weight"], scales, arrays["quant_map"], *span)
            rounded = round_bfloat16(values) if self.dtype == "bfloat16" else values.astype(self.dtype)
            out[low:high] = cast(rounded.reshape(high - low, *self.shape[1:]), self.dtype, dtype)


def with_values(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Tensors of a folder with weights instead of their parts.

    Raises:
        CheckpointError: A part is missing, or does not fit the others.
    """
    found = dict(tensors)
    for key in tensors:
        state = next((state for state in STATES if key.endswith("." + state)), None)
        if state is None:
            continue
        name = key.removesuffix("." + state)
        names = {"weight": name, **{part: f"{name}.{part}" for part in (*PARTS, *NESTED)}}
        parts = {part: tensors[full] for part, full in names.items() if full in tensors}
        try:
            described = blocks.read_state(tensors[key].read())
            blocks.check_sizes(described, {part: info.size for part, info in parts.items()})
        except ValueError as error:
            raise CheckpointError(f"{tensors[key].file}: {name} is not a weight of bitsandbytes: {error}") from None
        for full in (key, *(f"{name}.{part}" for part in parts if part != "weight")):
            del found[full]
        found[name] = BlockTensor(
            described.shape, described.dtype, tensors[key].file, 0, name=name, state=described, parts=parts
        )
    if lost := sorted(key for key in found if key.endswith(tuple(f".{part}" for part in (*PARTS, *NESTED)))):
        raise CheckpointError(
            f"{tensors[lost[0]].file}: {lost[0]} has no {STATES[0]} beside it; the checkpoint is incomplete"
        )
    return found


def _floats(info: TensorInfo) -> NDArray[Any]:
    values = info.read()
    return np.asarray(widen(values) if info.dtype == "bfloat16" else values)

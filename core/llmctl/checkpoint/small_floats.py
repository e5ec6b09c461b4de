"""Weights that are stored as floats of 8 or 4 bits with scales, as float32 tensors of the model in floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.checkpoint.formats.dtypes import cast, widen
from llmctl.checkpoint.formats.tensor_info import CHUNK_BYTES, CodedTensor, TensorInfo
from llmctl.errors import CheckpointError
from llmctl.quant.formats import small_floats
from llmctl.quant.formats.codes import Codes
from llmctl.quant.formats.scheme import Block

GROUP = 32
"""Inputs that share a scale of the 8-bit codes that the fused engine takes instead."""


@dataclass(frozen=True)
class SmallFloats(CodedTensor):
    """A weight [out, in].

    Attributes:
        name: The linear.
        block: What shares a scale.
        parts: Its stored tensors, by the last part of their names.
    """

    name: str = ""
    block: Block = (0, 0)
    parts: Mapping[str, TensorInfo] = field(default_factory=dict)

    def codes(self) -> Codes:
        """The nearest codes of 8 bits, or exact ones, as ``quant.formats.small_floats.codes`` says."""
        try:
            return small_floats.codes(self._arrays(), self._dtypes(), self.block, GROUP)
        except ValueError as error:
            raise self._damaged(error) from None

    def read_into(self, out: NDArray[Any], dtype: str, start: int = 0) -> None:
        """As ``TensorInfo.read_into``."""
        arrays, dtypes = self._arrays(), self._dtypes()
        step = max(1, CHUNK_BYTES // (4 * self.shape[1]))
        for low in range(0, len(out), step):
            high = min(low + step, len(out))
            rows = slice(start + low, start + high)
            try:
                values = small_floats.values(arrays, dtypes, self.block, rows)
                out[low:high] = cast(values, "float32", dtype)
            except ValueError as error:
                raise self._damaged(error) from None

    def _dtypes(self) -> dict[str, str]:
        return {part: info.dtype for part, info in self.parts.items()}

    def _arrays(self) -> dict[str, NDArray[Any]]:
        read = {part: (info.dtype, info.read()) for part, info in self.parts.items()}
        return {part: np.asarray(widen(bits) if dtype == "bfloat16" else bits) for part, (dtype, bits) in read.items()}

    def _damaged(self, error: ValueError) -> CheckpointError:
        return CheckpointError(f"{self.file}: {self.name} cannot be read: {error}")

"""Packed weights from the codes of a quantized checkpoint: every weight has exactly the values that the checkpoint stores.

Codes of 2 to 4 bits become ``int4``, of 8 bits ``int8``; groups that are not consecutive (``desc_act`` with g_idx) become so by an
order of the inputs. Groups that are no multiple of 32 stay floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.checkpoint.coded import codes_of
from llmctl.checkpoint.convert import LazyTensor
from llmctl.infer.packed.linear import STRETCH, PackedLinear, pack_codes
from llmctl.infer.packed.model import Float
from llmctl.infer.packed.pack import HALF, Order, RoundToNearest
from llmctl.quant.formats.codes import Codes


class StoredCodes(RoundToNearest):
    """Tensors of a quantized checkpoint; those that it stores as floats are packed as floats.

    Args:
        state: Name -> tensor, as ``checkpoint.convert.open_source`` gives it.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        super().__init__(state, "float32")

    def linear(self, names: Sequence[str], order: Order | None) -> PackedLinear:
        """The stored codes, or the values."""
        return self._stored(names, order) or super().linear(names, order)

    def outer(self, name: str, transposed: bool) -> PackedLinear:
        """The stored codes, or the values."""
        return self._stored([name], None, transposed) or super().outer(name, transposed)

    def table(self, name: str) -> NDArray[np.generic] | PackedLinear:
        """The stored codes, or the values."""
        return self._stored([name], None, True) or super().table(name)

    def _kind_of(self, names: Sequence[str]) -> str:
        kinds = {self._state[name].dtype for name in names}
        return kinds.pop() if len(kinds) == 1 and kinds <= {*HALF} else "float32"

    def _stored(self, names: Sequence[str], order: Order | None, table: bool = False) -> PackedLinear | None:
        """The codes of weights, concatenated along their outputs; None = the layout does not hold them.

        Codes of 4 bits beside those of 8 are as they are among these. The outputs of a table are its rows.
        """
        read = [self._codes(self._state[name], table) for name in names]
        found = [each for each in read if each is not None]
        first = found[0] if len(found) == len(read) else None
        if first is None or not all(_alike(first, each) for each in found):
            return None
        codes, scales, zeros = (
            np.concatenate(arrays, axis=1) for arrays in zip(*(one.arrays for one in found), strict=True)
        )
        if order is not None:
            codes, scales, zeros = codes[:, order], scales[:, order], zeros[:, order]
        kind = "int8" if any(one.bits == 8 for one in found) else "int4"
        return pack_codes(codes, scales, zeros if zeros.any() else None, kind, first.group, first.order)

    def _codes(self, tensor: Any, table: bool) -> _Read | None:
        """The codes of a tensor of the card; None = it has none, or the layout does not hold them."""
        codes = codes_of(tensor.shape, tensor.sources, table) if isinstance(tensor, LazyTensor) else None
        grouped = None if codes is None else _grouped(codes)
        if codes is None or grouped is None:
            return None
        group, order = grouped
        codes_IO = codes.codes_OI.T if order is None else codes.codes_OI.T[order]
        return _Read(codes.bits, group, order, (codes_IO, codes.scales_OG.T, codes.zeros_OG.T))


@dataclass(frozen=True)
class _Read:
    """Codes [I, O], scales [G, O] and zeros [G, O] as the packed layout has them; ``order`` is that of ``PackedLinear``."""

    bits: int
    group: int
    order: Order | None
    arrays: tuple[NDArray[np.int16], Float, Float]


def _alike(one: _Read, other: _Read) -> bool:
    """Whether two weights can be one."""
    return one.group == other.group and np.array_equal(one.order, other.order)


def _grouped(codes: Codes) -> tuple[int, Order | None] | None:
    """Inputs of a group as the packed layout has them, and the order in which groups are consecutive; None = it does not hold them."""
    size = codes.group_size
    if size is not None:
        return None if size % STRETCH else (size, None)
    order = np.argsort(codes.group_I, kind="stable")
    sizes = np.bincount(codes.group_I, minlength=codes.scales_OG.shape[1])
    size = int(sizes[0])
    within = size > 0 and size % STRETCH == 0
    return (size, order) if within and np.array_equal(codes.group_I[order], np.arange(len(order)) // size) else None

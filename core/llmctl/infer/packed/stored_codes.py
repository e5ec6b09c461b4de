"""Packed weights from the codes of a quantized checkpoint: every weight has exactly the values that the checkpoint stores.

Codes of 2 to 4 bits become ``int4``, of 8 bits ``int8``; groups that are not consecutive (``desc_act`` with g_idx) become so by an
order of the inputs. Groups that are no multiple of 32 stay floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.checkpoint.convert import LazyTensor
from llmctl.checkpoint.formats.tensor_info import CodedTensor
from llmctl.checkpoint.slices import take_slice, write_slice
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
        sources = tensor.sources if isinstance(tensor, LazyTensor) else ()
        if not sources or not all(
            isinstance(info, CodedTensor) and m.transpose is (info.outputs_first is not table) for info, m in sources
        ):
            return None
        parts = [(info.codes(), replace(mapping, transpose=True)) for info, mapping in sources]
        inputs, outputs = tensor.shape[::-1] if table else tensor.shape
        groups = parts[0][0].scales_OG.shape[1]
        arrays = (np.empty((inputs, outputs), np.int16), *(np.empty((groups, outputs), np.float32) for _ in "sz"))
        found = None
        for codes, mapping in parts:
            grouped = _grouped(codes)
            if grouped is None:
                return None
            one = _Read(codes.bits, *grouped, arrays)
            if not _alike(found := found or one, one):
                return None
            stored = (codes.codes_OI, codes.scales_OG, codes.zeros_OG)
            for target, values in zip(arrays, stored, strict=True):
                write_slice(target, take_slice(values, mapping), mapping.dst_slice)
        if found is not None and found.order is not None:
            arrays[0][...] = arrays[0][found.order]
        return found


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

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
from llmctl.infer.packed.linear import STRETCH, PackedLinear, Weight, joined, pack_codes
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

    def linear(self, names: Sequence[str], order: Order | None) -> Weight:
        """The stored codes, or the values."""
        return self._stored(names, order) or super().linear(names, order)

    def outer(self, name: str, transposed: bool) -> PackedLinear:
        """The stored codes, or the values."""
        return self._one(name, transposed) or super().outer(name, transposed)

    def table(self, name: str) -> NDArray[np.generic] | PackedLinear:
        """The stored codes, or the values."""
        return self._one(name, True) or super().table(name)

    def _kind_of(self, names: Sequence[str]) -> str:
        kinds = {self._state[name].dtype for name in names}
        return kinds.pop() if len(kinds) == 1 and kinds <= {*HALF} else "float32"

    def _one(self, name: str, table: bool) -> PackedLinear | None:
        """The codes of a weight; None = the layout does not hold them. The outputs of a table are its rows."""
        read = self._codes(self._state[name], table)
        return None if read is None else _part([read], None, read.outputs)

    def _stored(self, names: Sequence[str], order: Order | None) -> Weight | None:
        """The codes of weights, joined along their outputs; None = the layout does not hold them.

        Neighbours of one kind, group and order of inputs are one part.
        """
        read: list[list[_Read]] = []
        for name in names:
            one = self._codes(self._state[name], False)
            if one is None:
                return None
            if read and _alike(read[-1][0], one):
                read[-1].append(one)
            else:
                read.append([one])
        ends = np.cumsum([sum(one.outputs for one in part) for part in read])
        orders = [None] * len(read) if order is None else np.split(order, ends[:-1])
        return joined([_part(part, own, end) for part, own, end in zip(read, orders, ends, strict=True)])

    def _codes(self, tensor: Any, table: bool) -> _Read | None:
        """The codes of a tensor of the card; None = it has none, or the layout does not hold them."""
        codes = codes_of(tensor.shape, tensor.sources, table) if isinstance(tensor, LazyTensor) else None
        grouped = None if codes is None else _grouped(codes)
        if codes is None or grouped is None:
            return None
        group, order = grouped
        codes_IO = codes.codes_OI.T if order is None else codes.codes_OI.T[order]
        return _Read(
            "int8" if codes.bits == 8 else "int4", group, order, (codes_IO, codes.scales_OG.T, codes.zeros_OG.T)
        )


@dataclass(frozen=True)
class _Read:
    """Codes [I, O], scales [G, O] and zeros [G, O] as the packed layout has them; ``order`` is that of ``PackedLinear``."""

    kind: str
    group: int
    order: Order | None
    arrays: tuple[NDArray[np.int16], Float, Float]

    @property
    def outputs(self) -> int:
        """O."""
        return self.arrays[0].shape[1]


def _alike(one: _Read, other: _Read) -> bool:
    """Whether two weights can be one part."""
    return (one.kind, one.group) == (other.kind, other.group) and np.array_equal(one.order, other.order)


def _part(weights: Sequence[_Read], order: Order | None, end: int) -> PackedLinear:
    """Weights that are alike, with their outputs in an order.

    Args:
        weights: The weights.
        order: For each output here its number in the whole; None = as they are.
        end: Number of the output after the last.
    """
    codes, scales, zeros = (
        np.concatenate(arrays, axis=1) for arrays in zip(*(one.arrays for one in weights), strict=True)
    )
    if order is not None:
        own = order - (end - len(order))
        assert own.min() == 0 and own.max() == len(own) - 1, "the order of outputs keeps those of a tensor together"
        codes, scales, zeros = codes[:, own], scales[:, own], zeros[:, own]
    first = weights[0]
    return pack_codes(codes, scales, zeros if zeros.any() else None, first.kind, first.group, first.order)


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

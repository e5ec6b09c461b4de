"""Packed weights from the codes of a quantized checkpoint: every weight has exactly the values that the checkpoint stores.

Codes of 2 to 4 bits become ``int4``, of 8 bits ``int8``. What the packed layout cannot hold stays ``float32``: groups that are no
multiple of 32 or not consecutive (``desc_act`` with g_idx), and 32 inputs of a group with both -128 and 127 as 8-bit codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.checkpoint.convert import LazyTensor
from llmctl.checkpoint.quantized import QuantizedTensor
from llmctl.checkpoint.slices import take_slice, write_slice
from llmctl.infer.packed.linear import LIMITS, STRETCH, PackedLinear, pack_codes
from llmctl.infer.packed.model import Float
from llmctl.infer.packed.pack import Order, RoundToNearest
from llmctl.quant.formats.codes import Codes

Arrays = tuple[NDArray[np.int16], Float, Float]
"""Codes [I, O], scales [G, O] and zeros [G, O]."""


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
        return (None if transposed else self._stored([name], None)) or super().outer(name, transposed)

    def _stored(self, names: Sequence[str], order: Order | None) -> PackedLinear | None:
        """The codes of weights, concatenated along their outputs; None = the layout does not hold them."""
        read = [self._codes(self._state[name]) for name in names]
        found = [each for each in read if each is not None]
        layouts = {(bits, group) for bits, group, _ in found}
        if len(found) < len(read) or len(layouts) > 1:
            return None
        bits, group = layouts.pop()
        codes, scales, zeros = (
            np.concatenate(arrays, axis=1) for arrays in zip(*(a for _, _, a in found), strict=True)
        )
        if order is not None:
            codes, scales, zeros = codes[:, order], scales[:, order], zeros[:, order]
        kind = "int8" if bits == 8 else "int4"
        if kind == "int8":
            return _eight_bits(codes, scales, zeros, group)
        return pack_codes(codes, scales, zeros if zeros.any() else None, kind, group)

    def _codes(self, tensor: Any) -> tuple[int, int, Arrays] | None:
        """Bits, group and arrays of a tensor of the card."""
        sources = tensor.sources if isinstance(tensor, LazyTensor) else ()
        if not sources or not all(isinstance(info, QuantizedTensor) and m.transpose for info, m in sources):
            return None
        read = [(info.codes(), mapping) for info, mapping in sources]
        layouts = {(codes.bits, _group(codes)) for codes, _ in read}
        if len(layouts) > 1 or None in (group := next(iter(layouts))):
            return None
        inputs, outputs = tensor.shape
        groups = read[0][0].scales_OG.shape[1]
        arrays = (np.empty((inputs, outputs), np.int16), *(np.empty((groups, outputs), np.float32) for _ in "sz"))
        for codes, mapping in read:
            stored = (codes.codes_OI, codes.scales_OG, codes.zeros_OG)
            for target, values in zip(arrays, stored, strict=True):
                write_slice(target, take_slice(values, mapping), mapping.dst_slice)
        return group[0], group[1] or 0, arrays


def _group(codes: Codes) -> int | None:
    """Inputs of a group as the packed layout has them: 0 or a multiple of 32; None = it does not hold them."""
    size = codes.group_size
    return None if size is None or size % STRETCH else size


def _eight_bits(codes: NDArray[np.int16], scales: Float, zeros: Float, group: int) -> PackedLinear | None:
    """8-bit codes, whose least the layout does not hold: groups with -128, and no 127, move up by one, and their zeros down.

    Groups with both are divided into smaller ones; None = one of 32 inputs has both.
    """
    inputs, (least, most) = len(codes), LIMITS["int8"]
    whole = group or inputs
    for size in (group, *(size for size in (128, 64, STRETCH) if size < whole and not (group and group % size))):
        starts = np.arange(0, inputs, size or inputs)
        moved = (np.minimum.reduceat(codes, starts) < least) & (np.maximum.reduceat(codes, starts) < most)
        step = np.repeat(moved, np.diff([*starts, inputs]), axis=0)
        within = codes + step.astype(np.int16)
        if within.min() >= least and within.max() <= most:
            origin = starts // whole
            lower = (zeros[origin] - moved).astype(np.float32)
            return pack_codes(within, scales[origin], lower if lower.any() else None, "int8", size)
    return None

"""Prefix-LM: 2-D positions and mask of documents whose prefix has bidirectional attention (GLM).

A document is ``... mask ... end answer``: everything before the end token is the prefix, and the answer fills the position
of the mask token. Shape suffixes as in the package's docstring.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from llmctl.card.decoder_spec import PrefixLM
from llmctl.errors import DataError
from llmctl.nn.cache import KVCache
from llmctl.nn.mask import Layout, Mask
from llmctl.nn.rotary import CosSin, Rotary
from llmctl.nn.symbolic import size

FAR = 2**40
"""Above every position."""


class PrefixLMInputs:
    """Cosines, sines and mask from the token ids; the ``attention_inputs`` of a decoder.

    In a prefix the first position id is the token's position and the second is 0; in an answer the first is the mask
    token's position and the second counts from 1.

    Args:
        rotary: Cosines and sines of either position id.
        prefix_lm: The tokens that delimit a prefix.
    """

    def __init__(self, rotary: Rotary, prefix_lm: PrefixLM) -> None:
        self._rotary, self._prefix_lm = rotary, prefix_lm

    def __call__(
        self, input_ids_BT: paddle.Tensor, layout: Layout, cache: KVCache | None, dtype: str
    ) -> tuple[list[CosSin], Mask | None]:
        """Cosines and sines of the first and of the second position id, and the mask."""
        find = self._eager if paddle.in_dynamic_mode() else self._traced
        position_BT, length_BT, mask_position_BT, first_BT = find(input_ids_BT, layout, cache)
        second_BT = position_BT - length_BT + 1
        first_position_BT = paddle.where(second_BT > 0, mask_position_BT.expand_as(second_BT), position_BT)
        cos_sin = [self._rotary(ids_BT, dtype) for ids_BT in (first_position_BT, second_BT.clip(min=0))]
        return cos_sin, layout.mask(first_BT=first_BT)

    def _eager(self, input_ids_BT: paddle.Tensor, layout: Layout, cache: Any) -> tuple[Any, ...]:
        """As ``find_prefixes``, with the prefix's length and mask position from the cache once they are known."""
        if cache is not None and cache.rows:
            return (
                layout.position_BT - cache.rows["base"],
                cache.rows["prefix_length"],
                cache.rows["mask_position"],
                None,
            )
        arrays = (values.numpy() for values in (input_ids_BT, layout.position_BT, layout.real_BT))
        found = find_prefixes(*np.broadcast_arrays(*arrays), self._prefix_lm)
        position_BT, length_BT, mask_position_BT, first_BT = map(paddle.to_tensor, found)
        if cache is not None:
            base = layout.position_BT[:, -1:] - position_BT[:, -1:]
            cache.rows = {"base": base, "prefix_length": length_BT[:, -1:], "mask_position": mask_position_BT[:, -1:]}
        return position_BT, length_BT, mask_position_BT, first_BT

    def _traced(self, input_ids_BT: paddle.Tensor, layout: Layout, cache: Any) -> tuple[Any, ...]:
        """The same in a program, whose cache holds -1 for what is unknown before the first tokens."""
        base_B1, length_B1, mask_position_B1, first_BT = find_prefix(
            input_ids_BT, layout.position_BT, layout.real_BT, self._prefix_lm
        )
        known_B1 = cache.rows["prefix_length"] >= 0
        found = {"base": base_B1, "prefix_length": length_B1, "mask_position": mask_position_B1}
        cache.rows = {name: paddle.where(known_B1, cache.rows[name], value) for name, value in found.items()}
        own_T = paddle.arange(size(input_ids_BT, 1), dtype="int64")
        rows = (cache.rows[name] for name in ("prefix_length", "mask_position"))
        return layout.position_BT - cache.rows["base"], *rows, paddle.where(known_B1, own_T, first_BT)


def find_prefixes(ids_BT: Any, position_BT: Any, real_BT: Any, prefix_lm: PrefixLM) -> tuple[Any, Any, Any, Any]:
    """For every token, as int64 [B, T]: its position in its document, the length of the document's prefix, the position of
    the prefix's mask token, and the first column that attends to the token.

    A document begins where position ids restart. No token attends to padding, whatever its values here.

    Args:
        ids_BT: Token ids.
        position_BT: Position ids.
        real_BT: Which tokens are not padding.
        prefix_lm: The tokens that delimit a prefix.

    Raises:
        DataError: A document lacks one of these tokens.
    """
    place_BT, length_BT, mask_position_BT = (np.zeros(ids_BT.shape, np.int64) for _ in range(3))
    first_BT = np.broadcast_to(np.arange(ids_BT.shape[1]), ids_BT.shape).copy()
    for row in range(len(ids_BT)):
        columns = np.flatnonzero(real_BT[row])
        base = position_BT[row, columns].min(initial=0 if not len(columns) else None)
        for document in np.split(columns, np.flatnonzero(position_BT[row, columns] == base)[1:]):
            length, mask_position = _prefix(ids_BT[row, document].tolist(), prefix_lm, row)
            place_BT[row, document] = position_BT[row, document] - base
            first_BT[row, document[:length]] = document[0]
            length_BT[row, document], mask_position_BT[row, document] = length, mask_position
    return place_BT, length_BT, mask_position_BT, first_BT


def _prefix(ids: list[int], prefix_lm: PrefixLM, row: int) -> tuple[int, int]:
    """Length of a document's prefix, and the position of its mask token."""
    prefix = ids[: ids.index(prefix_lm.end)] if prefix_lm.end in ids else ids
    masks = [mask for mask in prefix_lm.mask_ids if mask in prefix]
    if prefix_lm.end not in ids or not masks:
        missing = prefix_lm.end if prefix_lm.end not in ids else " or ".join(map(str, prefix_lm.mask_ids))
        raise DataError(
            f"row {row} has no token {missing} at the end of its prefix; a prompt of this family ends with the ids "
            f"{prefix_lm.mask_ids[0]} {prefix_lm.end}"
        )
    return len(prefix), prefix.index(masks[0])


def find_prefix(
    ids_BT: paddle.Tensor, position_BT: paddle.Tensor, real_BT: paddle.Tensor, prefix_lm: PrefixLM
) -> tuple[paddle.Tensor, ...]:
    """``find_prefixes`` for rows of one document each, as operators that a program can hold.

    Returns:
        The position id of the first token, the length of the prefix and the position of its mask token [B, 1], the last two
        -1 where the tokens are missing; and the first column that attends to each token [B, T].
    """
    column_BT = paddle.zeros_like(position_BT) + paddle.arange(size(position_BT, 1), dtype="int64")

    def earliest(value_BT: paddle.Tensor, where_BT: paddle.Tensor) -> paddle.Tensor:
        return paddle.where(where_BT, value_BT, paddle.full_like(value_BT, FAR)).min(axis=1, keepdim=True)

    base_B1 = earliest(position_BT, real_BT)
    end_B1 = earliest(position_BT, paddle.logical_and(real_BT, ids_BT == prefix_lm.end))
    prefix_BT = paddle.logical_and(real_BT, position_BT < end_B1)
    mask_B1 = paddle.full_like(base_B1, FAR)
    for mask in reversed(prefix_lm.mask_ids):
        found_B1 = earliest(position_BT, paddle.logical_and(prefix_BT, ids_BT == mask))
        mask_B1 = paddle.where(found_B1 < FAR, found_B1, mask_B1)
    complete_B1 = paddle.logical_and(end_B1 < FAR, mask_B1 < FAR)
    length_B1, mask_position_B1 = (
        paddle.where(complete_B1, at_B1 - base_B1, paddle.full_like(base_B1, -1)) for at_B1 in (end_B1, mask_B1)
    )
    first_BT = paddle.where(prefix_BT, earliest(column_BT, real_BT).expand_as(column_BT), column_BT)
    return base_B1, length_B1, mask_position_B1, first_BT

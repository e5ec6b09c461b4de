"""PrefixLM that are read in both directions, found by the tokens that mark them: positions in two dimensions, and the mask.

A document is ``... mark ... end answer``: everything before the end token is the context, and the answer stands for the
mark. Letters as in the package's docstring.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from llmctl.card.decoder_spec import PrefixLM
from llmctl.errors import DataError
from llmctl.nn.cache import KVCache
from llmctl.nn.mask import Layout, Mask
from llmctl.nn.rotary import Angles, Rotary
from llmctl.nn.symbolic import size

FAR = 2**40
"""A position that no token has."""


class ContextView:
    """Angles and mask of tokens, after contexts are found; the ``view`` of a decoder.

    In a context the first position is a token's place and the second 0; in an answer the first is the mark's place and the
    second counts from 1.

    Args:
        rotary: Angles of either position.
        contexts: The tokens.
    """

    def __init__(self, rotary: Rotary, contexts: PrefixLM) -> None:
        self._rotary, self._contexts = rotary, contexts

    def __call__(
        self, input_ids_BT: paddle.Tensor, layout: Layout, cache: KVCache | None, dtype: str
    ) -> tuple[list[Angles], Mask | None]:
        """Angles of the first and of the second position, and the mask."""
        find = self._found if paddle.in_dynamic_mode() else self._traced
        place_BT, context_BT, masked_BT, first_BT = find(input_ids_BT, layout, cache)
        beyond_BT = place_BT - context_BT + 1
        first_position_BT = paddle.where(beyond_BT > 0, masked_BT.expand_as(beyond_BT), place_BT)
        angles = [self._rotary(position, dtype) for position in (first_position_BT, beyond_BT.clip(min=0))]
        return angles, layout.mask(first_BT=first_BT)

    def _found(self, input_ids_BT: paddle.Tensor, layout: Layout, cache: Any) -> tuple[Any, ...]:
        """Of every token its place, the place of the end token, that of the mark, and the first column that sees it."""
        if cache is not None and cache.rows:
            return layout.position_BT - cache.rows["base"], cache.rows["context"], cache.rows["masked"], None
        arrays = (values.numpy() for values in (input_ids_BT, layout.position_BT, layout.real_BT))
        found = find_contexts(*np.broadcast_arrays(*arrays), self._contexts)
        place_BT, context_BT, masked_BT, first_BT = map(paddle.to_tensor, found)
        if cache is not None:
            base = layout.position_BT[:, -1:] - place_BT[:, -1:]
            cache.rows = {"base": base, "context": context_BT[:, -1:], "masked": masked_BT[:, -1:]}
        return place_BT, context_BT, masked_BT, first_BT

    def _traced(self, input_ids_BT: paddle.Tensor, layout: Layout, cache: Any) -> tuple[Any, ...]:
        """The same in a program, whose cache holds -1 for what is not known before the first tokens have been seen."""
        base_B1, context_B1, masked_B1, first_BT = find_context(
            input_ids_BT, layout.position_BT, layout.real_BT, self._contexts
        )
        known_B1 = cache.rows["context"] >= 0
        found = {"base": base_B1, "context": context_B1, "masked": masked_B1}
        cache.rows = {name: paddle.where(known_B1, cache.rows[name], value) for name, value in found.items()}
        own_T = paddle.arange(size(input_ids_BT, 1), dtype="int64")
        rows = (cache.rows[name] for name in ("context", "masked"))
        return layout.position_BT - cache.rows["base"], *rows, paddle.where(known_B1, own_T, first_BT)


def find_contexts(ids_BT: Any, position_BT: Any, real_BT: Any, contexts: PrefixLM) -> tuple[Any, Any, Any, Any]:
    """For every token, as int64 [B, T]: its place in its document, the place of the document's end token, the place of the
    mark that the answer stands for, and the first column whose token sees it.

    A document begins where positions do. Padding, whatever its values, is seen by nobody.

    Args:
        ids_BT: Token ids.
        position_BT: Positions.
        real_BT: Which tokens are none of padding.
        contexts: The tokens.

    Raises:
        DataError: A document has no such tokens.
    """
    place_BT, context_BT, masked_BT = (np.zeros(ids_BT.shape, np.int64) for _ in range(3))
    first_BT = np.broadcast_to(np.arange(ids_BT.shape[1]), ids_BT.shape).copy()
    for row in range(len(ids_BT)):
        columns = np.flatnonzero(real_BT[row])
        base = position_BT[row, columns].min(initial=0 if not len(columns) else None)
        for document in np.split(columns, np.flatnonzero(position_BT[row, columns] == base)[1:]):
            length, mark = _context(ids_BT[row, document].tolist(), contexts, row)
            place_BT[row, document] = position_BT[row, document] - base
            first_BT[row, document[:length]] = document[0]
            context_BT[row, document], masked_BT[row, document] = length, mark
    return place_BT, context_BT, masked_BT, first_BT


def _context(ids: list[int], contexts: PrefixLM, row: int) -> tuple[int, int]:
    """Length of a document's context, and the place of its mark."""
    context = ids[: ids.index(contexts.end)] if contexts.end in ids else ids
    marks = [mark for mark in contexts.mask_ids if mark in context]
    if contexts.end not in ids or not marks:
        lacking = contexts.end if contexts.end not in ids else " or ".join(map(str, contexts.mask_ids))
        raise DataError(
            f"row {row} has no token {lacking} where its context ends; a prompt of this family ends with the ids "
            f"{contexts.mask_ids[0]} {contexts.end}"
        )
    return len(context), context.index(marks[0])


def find_context(
    ids_BT: paddle.Tensor, position_BT: paddle.Tensor, real_BT: paddle.Tensor, contexts: PrefixLM
) -> tuple[paddle.Tensor, ...]:
    """``find_contexts`` for rows that are one document each, as operators that a program can hold.

    Returns:
        The position of the first token, the place of the end token and that of the mark [B, 1], the last two -1 where the
        tokens are missing; and the first column that sees each token [B, T].
    """
    column_BT = paddle.zeros_like(position_BT) + paddle.arange(size(position_BT, 1), dtype="int64")

    def earliest(value_BT: paddle.Tensor, seen_BT: paddle.Tensor) -> paddle.Tensor:
        return paddle.where(seen_BT, value_BT, paddle.full_like(value_BT, FAR)).min(axis=1, keepdim=True)

    base_B1 = earliest(position_BT, real_BT)
    end_B1 = earliest(position_BT, paddle.logical_and(real_BT, ids_BT == contexts.end))
    context_BT = paddle.logical_and(real_BT, position_BT < end_B1)
    mark_B1 = paddle.full_like(base_B1, FAR)
    for mark in reversed(contexts.mask_ids):
        found_B1 = earliest(position_BT, paddle.logical_and(context_BT, ids_BT == mark))
        mark_B1 = paddle.where(found_B1 < FAR, found_B1, mark_B1)
    whole_B1 = paddle.logical_and(end_B1 < FAR, mark_B1 < FAR)
    length_B1, place_B1 = (
        paddle.where(whole_B1, at_B1 - base_B1, paddle.full_like(base_B1, -1)) for at_B1 in (end_B1, mark_B1)
    )
    first_BT = paddle.where(context_BT, earliest(column_BT, real_BT).expand_as(column_BT), column_BT)
    return base_B1, length_B1, place_B1, first_BT

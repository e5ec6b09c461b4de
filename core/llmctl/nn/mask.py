"""Where the tokens of a forward pass stand: their positions, and which keys each of them sees.

What a query sees is written per key: the key in column s is seen by the rows ``first <= row < last``. This one form
carries causal order, padding, sliding windows, documents packed into a row, answers that share a prompt, and contexts
read in both directions (the column-wise representation of https://arxiv.org/abs/2410.01359). Letters as in the package's
docstring; rows and columns count past and new positions together.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from llmctl.errors import UnsupportedError
from llmctl.nn.rotary import positions
from llmctl.nn.symbolic import common, size


class Mask:
    """Which rows see a key, and the penalty of its place where there is one (ALiBi).

    Args:
        first_BS: First row that sees the key [B or 1, S], int32.
        last_BS: First row after it that no longer does; not above ``first`` = nobody sees it.
        new: Number of queries, T: the last rows.
        slopes: ``slopes[n] * place`` is added to the scores of head n; empty = nothing.
        place_BS: Place of each key in its document; needed with slopes.
        packed: Whether most queries see a small part of the keys, so that parts are worth computing apart.
        causal: Whether every key is seen from its own row on, and from no row before it.
    """

    def __init__(
        self,
        first_BS: paddle.Tensor,
        last_BS: paddle.Tensor,
        new: int,
        slopes: Sequence[float] = (),
        place_BS: paddle.Tensor | None = None,
        packed: bool = False,
        causal: bool = False,
    ) -> None:
        self.slopes, self.place_BS, self.packed, self.causal = tuple(slopes), place_BS, packed, causal
        # Both bounds are of one shape, as compiled operators take them.
        rows = common(first_BS.shape[0], last_BS.shape[0])
        self.first_BS, self.last_BS = (m.expand([rows, m.shape[1]]) for m in (first_BS, last_BS))
        self.new = new
        self.past = size(first_BS, 1) - new
        self._bias: dict[str, paddle.Tensor] = {}
        self._penalties: tuple[paddle.Tensor, paddle.Tensor] | None = None

    def bias(self, dtype: str) -> paddle.Tensor:
        """What to add to scores [B or 1, N or 1, T, S]: penalties where a query may look, else the lowest number.

        The lowest number is finite, so a query that may look nowhere (padding) averages all values instead of NaN.
        """
        if str(dtype) not in self._bias:
            self._bias[str(dtype)] = self.part(slice(None), slice(0, self.new), slice(None), dtype)
        return self._bias[str(dtype)]

    def penalties(self, dtype: str) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        """Slopes [N] and places [B or 1, S] in a type; None twice where there are none."""
        if not self.slopes:
            return None, None
        if self._penalties is None:
            self._penalties = paddle.to_tensor(self.slopes, dtype=dtype), self.place_BS.astype(dtype)
        return self._penalties

    def part(self, batch: slice, rows: slice, columns: slice, dtype: str) -> paddle.Tensor:
        """The bias of some queries (counted from the first new one) and keys of some rows of the batch."""
        first_BS, last_BS = (
            bounds if bounds.shape[0] == 1 else bounds[batch] for bounds in (self.first_BS, self.last_BS)
        )
        row_T1 = paddle.arange(self.past + rows.start, self.past + rows.stop, dtype="int32").unsqueeze(-1)
        first_B11S, last_B11S = (bounds[:, columns].unsqueeze([1, 2]) for bounds in (first_BS, last_BS))
        seen = paddle.logical_and(first_B11S <= row_T1, row_T1 < last_B11S)
        bias = paddle.where(seen, paddle.zeros([], dtype), paddle.full([], paddle.finfo(dtype).min, dtype))
        if not self.slopes:
            return bias
        place_BS = self.place_BS if self.place_BS.shape[0] == 1 else self.place_BS[batch]
        slope_N11 = paddle.to_tensor(self.slopes, dtype=dtype).reshape([1, -1, 1, 1])
        penalty_BN1S = slope_N11 * place_BS[:, columns].astype(dtype).unsqueeze([1, 2])
        count = common(bias.shape[0], penalty_BN1S.shape[0])
        shape = [count, len(self.slopes), bias.shape[2], bias.shape[3]]
        return penalty_BN1S.expand(shape) + bias.expand(shape)


class Layout:
    """Positions of the new tokens, and the mask that follows from padding and documents.

    Args:
        new: Number of new tokens, T.
        past: Number of tokens before them, in a cache.
        real_BS: 1 = real, 0 = padding, over past and new tokens; None = all real.
        position_BT: Position ids of the new tokens; None = counted from ``real_BS``.
        end_BT: First column, counted from the first new token, that no longer sees the token: where its document or its
            answer ends; 0 for padding. None = the end of the row. Goes with ``position_BT``, which restarts where a
            document does.

    Raises:
        ValueError: ``real_BS`` does not cover past and new tokens, or documents come without positions.
    """

    def __init__(
        self,
        new: int,
        past: int = 0,
        real_BS: paddle.Tensor | None = None,
        position_BT: paddle.Tensor | None = None,
        end_BT: paddle.Tensor | None = None,
    ) -> None:
        total = past + new
        if real_BS is not None and paddle.in_dynamic_mode() and real_BS.shape[1] != total:
            raise ValueError(f"attention_mask has {real_BS.shape[1]} columns for {past} past and {new} new positions")
        if end_BT is not None and position_BT is None:
            raise ValueError("documents packed into a row need position ids")
        self.new, self.past, self.total = new, past, total
        self.real_BS, self.end_BT = real_BS, end_BT
        self._given = position_BT is not None
        self.position_BT = position_BT if position_BT is not None else positions(new, past, real_BS)

    @property
    def packed(self) -> bool:
        """Whether rows hold several documents."""
        return self.end_BT is not None

    @property
    def real_BT(self) -> paddle.Tensor:
        """Which new tokens are none of padding [B or 1, T], bool."""
        past, real_BS = self.past, self.real_BS
        real_BT = paddle.ones_like(self.position_BT, "bool") if real_BS is None else real_BS[:, past:] > 0
        return paddle.logical_and(real_BT, self.end_BT > 0) if self.packed else real_BT

    @property
    def place_BS(self) -> paddle.Tensor:
        """Places of past and new tokens in their documents [B or 1, S]."""
        if self._given and not self.past:
            return self.position_BT
        if self.packed:
            before = paddle.arange(self.past, dtype="int64").unsqueeze(0).expand([self.position_BT.shape[0], self.past])
            return paddle.concat([before, self.position_BT], axis=1)
        return positions(self.total, 0, self.real_BS)

    def mask(
        self, window: int | None = None, slopes: Sequence[float] = (), first_BT: paddle.Tensor | None = None
    ) -> Mask | None:
        """The mask; None = every query sees every key alike.

        Args:
            window: A query sees this many keys, its own included; None = all before it.
            slopes: Penalties per place, of each head.
            first_BT: First new token, counted from the first of them, that sees a new token's key; None = the token itself,
                which is causal order. Past keys are seen by all.

        Raises:
            UnsupportedError: Packed documents reach further than a window from past tokens, which one interval cannot say.
        """
        # How long the rows of a program are is known only when it runs.
        windowed = window is not None and (not paddle.in_dynamic_mode() or self.total > window)
        alike = self.real_BS is None and not windowed and not self.packed and self.new == 1
        if alike and not slopes and first_BT is None:
            return None
        column_S = paddle.arange(self.total, dtype="int32").unsqueeze(0)
        last_BS = self._last(column_S)
        if windowed:
            last_BS = paddle.minimum(last_BS, self._left(column_S, window))
        if self.real_BS is not None:
            last_BS = last_BS * self.real_BS.astype("int32")
        place_BS = self.place_BS if slopes else None
        first_BS = self._first(column_S, first_BT)
        return Mask(first_BS, last_BS, self.new, slopes, place_BS, self.packed, causal=first_BT is None)

    def _first(self, column_S: paddle.Tensor, first_BT: paddle.Tensor | None) -> paddle.Tensor:
        if first_BT is None:
            return column_S
        first_BT = first_BT.astype("int32")
        before_BS = column_S[:, : self.past] + paddle.zeros_like(first_BT[:, :1])
        return paddle.concat([before_BS, first_BT + self.past], axis=1)

    def _left(self, column_S: paddle.Tensor, window: int) -> paddle.Tensor:
        """First row that a key has left the window of [B or 1, S]."""
        if self.packed and self.past:
            # Distances to past tokens are those of places in a document, not of columns.
            if int(self.position_BT.max()) >= window:
                raise UnsupportedError(
                    f"documents packed after {self.past} past tokens do not fit a window of {window} positions: each "
                    "would see other parts of the past; shorten them, or put each into a row of its own"
                )
            return paddle.where(column_S < self.past, paddle.full_like(column_S, self.total), column_S + window)
        if self.packed or self.real_BS is None:
            return column_S + window
        # A window counts tokens, and padding may lie between past tokens and new ones.
        count_BS = self.real_BS.astype("int32").cumsum(axis=-1)
        return paddle.searchsorted(count_BS, count_BS + window, out_int32=True)

    def _last(self, column_S: paddle.Tensor) -> paddle.Tensor:
        if self.end_BT is None:
            return paddle.full_like(column_S, self.total)
        # Past tokens, which come before every document, are seen by all; 0 stays 0.
        end_BT = self.end_BT.astype("int32")
        end_BT = paddle.where(end_BT > 0, end_BT + self.past, end_BT)
        if not self.past:
            return end_BT
        return paddle.concat([paddle.full([end_BT.shape[0], self.past], self.total, "int32"), end_BT], axis=1)

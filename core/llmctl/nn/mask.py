"""Positions and attention mask of the tokens of a forward pass.

The mask is stored per key: key s is attended to by the query rows ``first <= row < last``. This one form covers causal
order, padding, sliding windows, documents packed into a row, answers that share a prompt, and prefix-LM (the column-wise
representation of FlashMask, https://arxiv.org/abs/2410.01359). Shape suffixes as in the package's docstring; rows and columns
count past and new positions together.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from llmctl.errors import UnsupportedError
from llmctl.nn.rotary import positions
from llmctl.nn.symbolic import broadcast_size, size


class Mask:
    """Attention mask: for each key the half-open range of query rows that attend to it, plus ALiBi slopes.

    Args:
        first_BS: First query row that attends to the key [B or 1, S], int32.
        last_BS: Row after the last that does; not above ``first`` = none does.
        new: Number of queries, T: the last rows.
        slopes: ALiBi: ``slopes[n] * position`` is added to the scores of head n; empty = no ALiBi.
        key_position_BS: Position of each key in its document; required with slopes.
        packed: Whether rows hold several documents, which are worth computing one by one.
        causal: Whether the first row that attends to each key is the key's own (causal attention).
    """

    def __init__(
        self,
        first_BS: paddle.Tensor,
        last_BS: paddle.Tensor,
        new: int,
        slopes: Sequence[float] = (),
        key_position_BS: paddle.Tensor | None = None,
        packed: bool = False,
        causal: bool = False,
    ) -> None:
        self.slopes, self.key_position_BS, self.packed, self.causal = tuple(slopes), key_position_BS, packed, causal
        # Compiled operators take both bounds in one shape.
        rows = broadcast_size(first_BS.shape[0], last_BS.shape[0])
        self.first_BS, self.last_BS = (m.expand([rows, m.shape[1]]) for m in (first_BS, last_BS))
        self.new = new
        self.past = size(first_BS, 1) - new
        self._bias: dict[str, paddle.Tensor] = {}
        self._alibi: tuple[paddle.Tensor, paddle.Tensor] | None = None
        self._part: Mask | None = None

    def of_heads(self, part: int, parts: int) -> Mask:
        """The mask of one of several equal parts of the heads, always the same one; it differs by its slopes alone."""
        if not self.slopes:
            return self
        if self._part is None:
            count = len(self.slopes) // parts
            own = self.slopes[part * count : (part + 1) * count]
            bounds = self.first_BS, self.last_BS
            self._part = Mask(*bounds, self.new, own, self.key_position_BS, self.packed, self.causal)
        return self._part

    def bias(self, dtype: str) -> paddle.Tensor:
        """The bias of the scores [B or 1, N or 1, T, S]: ALiBi where a query attends, else the dtype's lowest number.

        The lowest number is finite, so a query that attends to nothing (padding) averages all values instead of NaN.
        """
        if str(dtype) not in self._bias:
            self._bias[str(dtype)] = self.bias_slice(slice(None), slice(0, self.new), slice(None), dtype)
        return self._bias[str(dtype)]

    def alibi(self, dtype: str) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        """Slopes [N] and key positions [B or 1, S] in a dtype; None, None without ALiBi."""
        if not self.slopes:
            return None, None
        if self._alibi is None:
            self._alibi = paddle.to_tensor(self.slopes, dtype=dtype), self.key_position_BS.astype(dtype)
        return self._alibi

    def bias_slice(self, batch: slice, rows: slice, columns: slice, dtype: str) -> paddle.Tensor:
        """``bias`` of a slice of the batch, of the queries (counted from the first new one) and of the keys."""
        first_BS, last_BS = (
            bounds if bounds.shape[0] == 1 else bounds[batch] for bounds in (self.first_BS, self.last_BS)
        )
        row_T1 = paddle.arange(self.past + rows.start, self.past + rows.stop, dtype="int32").unsqueeze(-1)
        first_B11S, last_B11S = (bounds[:, columns].unsqueeze([1, 2]) for bounds in (first_BS, last_BS))
        attended = paddle.logical_and(first_B11S <= row_T1, row_T1 < last_B11S)
        bias = paddle.where(attended, paddle.zeros([], dtype), paddle.full([], paddle.finfo(dtype).min, dtype))
        if not self.slopes:
            return bias
        key_position_BS = self.key_position_BS if self.key_position_BS.shape[0] == 1 else self.key_position_BS[batch]
        slope_N11 = paddle.to_tensor(self.slopes, dtype=dtype).reshape([1, -1, 1, 1])
        alibi_BN1S = slope_N11 * key_position_BS[:, columns].astype(dtype).unsqueeze([1, 2])
        count = broadcast_size(bias.shape[0], alibi_BN1S.shape[0])
        shape = [count, len(self.slopes), bias.shape[2], bias.shape[3]]
        return alibi_BN1S.expand(shape) + bias.expand(shape)


class Layout:
    """Positions of the new tokens, and the mask implied by padding and documents.

    Args:
        new: Number of new tokens, T.
        past: Number of tokens before them, in a cache.
        real_BS: 1 = real, 0 = padding, over past and new tokens; None = all real.
        position_BT: Position ids of the new tokens; None = counted from ``real_BS``.
        end_BT: First column, counted from the first new token, that no longer attends to the token: the end of its
            document or answer; 0 for padding. None = the end of the row. Requires ``position_BT``, which restarts with
            each document.

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
        """Which new tokens are not padding [B or 1, T], bool."""
        past, real_BS = self.past, self.real_BS
        real_BT = paddle.ones_like(self.position_BT, "bool") if real_BS is None else real_BS[:, past:] > 0
        return paddle.logical_and(real_BT, self.end_BT > 0) if self.packed else real_BT

    @property
    def key_position_BS(self) -> paddle.Tensor:
        """Positions of past and new tokens in their documents [B or 1, S]."""
        if self._given and not self.past:
            return self.position_BT
        if self.packed:
            before = paddle.arange(self.past, dtype="int64").unsqueeze(0).expand([self.position_BT.shape[0], self.past])
            return paddle.concat([before, self.position_BT], axis=1)
        return positions(self.total, 0, self.real_BS)

    def mask(
        self, window: int | None = None, slopes: Sequence[float] = (), first_BT: paddle.Tensor | None = None
    ) -> Mask | None:
        """The mask; None = every query attends to every key, without bias.

        Args:
            window: Sliding window in keys, the query's own included; None = all keys before it.
            slopes: ALiBi slope of each head.
            first_BT: First new token, counted from the first of them, that attends to a new token's key; None = the token
                itself, which is causal order. All new tokens attend to past keys.

        Raises:
            UnsupportedError: Packed documents reach beyond the window from past tokens, which a range per key cannot
                express.
        """
        # The length of a program's rows is known only when it runs.
        windowed = window is not None and (not paddle.in_dynamic_mode() or self.total > window)
        unmasked = self.real_BS is None and not windowed and not self.packed and self.new == 1
        if unmasked and not slopes and first_BT is None:
            return None
        column_S = paddle.arange(self.total, dtype="int32").unsqueeze(0)
        last_BS = self._last(column_S)
        if windowed:
            last_BS = paddle.minimum(last_BS, self._window_end(column_S, window))
        if self.real_BS is not None:
            last_BS = last_BS * self.real_BS.astype("int32")
        key_position_BS = self.key_position_BS if slopes else None
        first_BS = self._first(column_S, first_BT)
        return Mask(first_BS, last_BS, self.new, slopes, key_position_BS, self.packed, causal=first_BT is None)

    def _first(self, column_S: paddle.Tensor, first_BT: paddle.Tensor | None) -> paddle.Tensor:
        if first_BT is None:
            return column_S
        first_BT = first_BT.astype("int32")
        before_BS = column_S[:, : self.past] + paddle.zeros_like(first_BT[:, :1])
        return paddle.concat([before_BS, first_BT + self.past], axis=1)

    def _window_end(self, column_S: paddle.Tensor, window: int) -> paddle.Tensor:
        """First row whose window no longer holds the key [B or 1, S]."""
        if self.packed and self.past:
            # Distances to past tokens are between positions in a document, not between columns.
            if int(self.position_BT.max()) >= window:
                raise UnsupportedError(
                    f"documents packed after {self.past} past tokens do not fit a window of {window} positions, since each "
                    "would attend to other past tokens; shorten them, or do not pack them"
                )
            return paddle.where(column_S < self.past, paddle.full_like(column_S, self.total), column_S + window)
        if self.packed or self.real_BS is None:
            return column_S + window
        # A window counts tokens, and there may be padding between past tokens and new ones.
        count_BS = self.real_BS.astype("int32").cumsum(axis=-1)
        return paddle.searchsorted(count_BS, count_BS + window, out_int32=True)

    def _last(self, column_S: paddle.Tensor) -> paddle.Tensor:
        if self.end_BT is None:
            return paddle.full_like(column_S, self.total)
        # Past tokens precede every document, and all rows attend to them; 0 stays 0.
        end_BT = self.end_BT.astype("int32")
        end_BT = paddle.where(end_BT > 0, end_BT + self.past, end_BT)
        if not self.past:
            return end_BT
        return paddle.concat([paddle.full([end_BT.shape[0], self.past], self.total, "int32"), end_BT], axis=1)

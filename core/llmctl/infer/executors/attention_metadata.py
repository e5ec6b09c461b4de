"""What the tokens of a step see, as intervals: which places of the cache are read, and which tokens see each of them.

A token sees the places from ``begin`` to ``end`` of its sequence. Both do not fall from token to token, so that a place
is seen by a stretch of tokens, and all sequences side by side are one mask of two numbers to a key, as in ``nn.layout``.
Letters as in ``batch``; S keys of all sequences, M heads with penalties.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import paddle

from llmctl.infer.executors.base import Batch
from llmctl.infer.executors.paged_cache import slots


@dataclass(frozen=True)
class Sequence:
    """One sequence of a step.

    Attributes:
        queries: Its tokens among those of the step.
        keys: Its keys among those that are read.
        first_S: First token that sees each key, counted from the step's first.
        last_S: The token after the last.
        place_S: Place of each key.
        slopes: Penalty of each head and place; empty = none.
    """

    queries: slice
    keys: slice
    first_S: np.ndarray
    last_S: np.ndarray
    place_S: np.ndarray
    slopes: tuple[float, ...]

    def bias(self, dtype: paddle.dtype) -> paddle.Tensor | None:
        """What to add to scores [1, 1 or heads, T, S]; None = nothing."""
        token_T1 = np.arange(self.queries.start, self.queries.stop)[:, None]
        seen_TS = (self.first_S <= token_T1) & (token_T1 < self.last_S)
        if seen_TS.all() and not self.slopes:
            return None
        low = float(paddle.finfo(dtype).min)
        bias_11TS = np.where(seen_TS, 0.0, low)[None, None]
        if self.slopes:
            # Counted from the last key, so that penalties of near keys are small numbers.
            penalty_MS = np.outer(self.slopes, self.place_S - self.place_S[-1])
            bias_11TS = np.where(seen_TS, penalty_MS[None, :, None, :], low)
        return paddle.to_tensor(bias_11TS.astype(np.float32)).astype(dtype)


class View:
    """What a step reads, in the order of its sequences.

    Args:
        batch: The step.
        slopes: Penalty of each head and place; empty = none.

    Attributes:
        sequences: Those that have tokens in the step.
        slot_S: Where the keys lie in a layer's cache.
        written_T: Where the step's own keys go.
    """

    def __init__(self, batch: Batch, slopes: Many[float] = ()) -> None:
        self.slopes = tuple(slopes)
        cuts = np.flatnonzero(np.diff(batch.row_T)) + 1
        starts, stops = [0, *cuts], [*cuts, len(batch.row_T)]
        assert len(set(batch.row_T[starts].tolist())) == len(starts), "a sequence's tokens stand together"
        self.sequences: list[Sequence] = []
        read, written, count = [], [], 0
        for start, stop in zip(map(int, starts), map(int, stops), strict=True):
            begin, end = batch.begin_T[start:stop], batch.end_T[start:stop]
            assert (np.diff(begin) >= 0).all() and (np.diff(end) >= 0).all(), "intervals do not fall"
            blocks, place_S = batch.blocks_RM[batch.row_T[start]], np.arange(begin[0], end[-1])
            keys = slice(count, count + len(place_S))
            first_S, last_S = (start + np.searchsorted(bound, place_S, side="right") for bound in (end, begin))
            self.sequences.append(Sequence(slice(start, stop), keys, first_S, last_S, place_S, self.slopes))
            read.append(slots(blocks, place_S))
            written.append(slots(blocks, batch.place_T[start:stop]))
            count = keys.stop
        self.slot_S, self.written_T = (paddle.to_tensor(np.concatenate(parts)) for parts in (read, written))

    def bounds(self) -> paddle.Tensor:
        """For each key the token from which on it is no longer seen, and the first that sees it [1, 1, S, 2], int32."""
        last_S, first_S = (
            np.concatenate([getattr(one, name) for one in self.sequences]) for name in ("last_S", "first_S")
        )
        return paddle.to_tensor(np.stack([last_S, first_S], axis=-1).astype(np.int32)[None, None])

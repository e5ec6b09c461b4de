"""What the tokens of a step attend to, as intervals: which KV positions are read, and which tokens attend to each of them.

A token attends to the KV positions from ``attend_begin`` to ``attend_end`` of its sequence. Neither decreases from token to
token, so that the tokens which attend to a key are a range, and the mask of all sequences is two numbers per key (FlashMask,
as in ``nn.mask``). Shape suffixes as in ``base``; S keys of all sequences, N heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from llmctl.infer.executors.base import Batch
from llmctl.infer.executors.paged_cache import slots


@dataclass(frozen=True)
class SequenceMetadata:
    """One sequence of a step.

    Attributes:
        queries: Its tokens among those of the step.
        keys: Its keys among those that are read.
        first_query_S: First token that attends to each key, counted from the step's first.
        end_query_S: The token after the last.
        kv_position_S: KV position of each key.
        slopes: ALiBi slope of each head; empty = none.
    """

    queries: slice
    keys: slice
    first_query_S: np.ndarray
    end_query_S: np.ndarray
    kv_position_S: np.ndarray
    slopes: tuple[float, ...]

    def bias(self, dtype: paddle.dtype) -> paddle.Tensor | None:
        """What to add to scores [1, 1 or N, T, S]; None = nothing."""
        token_T1 = np.arange(self.queries.start, self.queries.stop)[:, None]
        attends_TS = (self.first_query_S <= token_T1) & (token_T1 < self.end_query_S)
        if attends_TS.all() and not self.slopes:
            return None
        low = float(paddle.finfo(dtype).min)
        bias_11TS = np.where(attends_TS, 0.0, low)[None, None]
        if self.slopes:
            # Relative to the last key, so that the bias of near keys is small.
            alibi_NS = np.outer(self.slopes, self.kv_position_S - self.kv_position_S[-1])
            bias_11TS = np.where(attends_TS, alibi_NS[None, :, None, :], low)
        return paddle.to_tensor(bias_11TS.astype(np.float32)).astype(dtype)


class AttentionMetadata:
    """What a step reads and writes in the KV cache, in the order of its sequences.

    Args:
        batch: The step.
        slopes: ALiBi slope of each head; empty = none.

    Attributes:
        sequences: Those that have tokens in the step.
        slot_S: Cache slots of the keys that are read.
        write_slot_T: Cache slots of the step's own keys.
    """

    def __init__(self, batch: Batch, slopes: Sequence[float] = ()) -> None:
        self.slopes = tuple(slopes)
        cuts = np.flatnonzero(np.diff(batch.sequence_T)) + 1
        starts, stops = [0, *cuts], [*cuts, len(batch.sequence_T)]
        assert len(set(batch.sequence_T[starts].tolist())) == len(starts), "a sequence's tokens must be adjacent"
        self.sequences: list[SequenceMetadata] = []
        read, write, count = [], [], 0
        for start, stop in zip(map(int, starts), map(int, stops), strict=True):
            begin, end = batch.attend_begin_T[start:stop], batch.attend_end_T[start:stop]
            assert (np.diff(begin) >= 0).all() and (np.diff(end) >= 0).all(), "attention ranges must not decrease"
            table, kv_position_S = batch.block_tables_RM[batch.sequence_T[start]], np.arange(begin[0], end[-1])
            keys = slice(count, count + len(kv_position_S))
            first_S, end_S = (start + np.searchsorted(bound, kv_position_S, side="right") for bound in (end, begin))
            self.sequences.append(
                SequenceMetadata(slice(start, stop), keys, first_S, end_S, kv_position_S, self.slopes)
            )
            read.append(slots(table, kv_position_S))
            write.append(slots(table, batch.kv_position_T[start:stop]))
            count = keys.stop
        self.slot_S, self.write_slot_T = (paddle.to_tensor(np.concatenate(parts)) for parts in (read, write))

    def flashmask_bounds(self) -> paddle.Tensor:
        """For each key the first token that no longer attends to it, and the first that does [1, 1, S, 2], int32."""
        end_S, first_S = (
            np.concatenate([getattr(one, name) for one in self.sequences]) for name in ("end_query_S", "first_query_S")
        )
        return paddle.to_tensor(np.stack([end_S, first_S], axis=-1).astype(np.int32)[None, None])

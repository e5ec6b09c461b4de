"""The batch of a step, as executors take it, from the scheduled chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmctl.infer.engine.positions import PositionRule
from llmctl.infer.engine.request_state import ScheduledChunk
from llmctl.infer.executors.base import BLOCK, Batch


def build_batch(chunks: Sequence[ScheduledChunk], rule: PositionRule) -> Batch:
    """The batch. Logits are computed for the last token of every completed sequence and for its draft tokens."""
    ids: list[int] = []
    logits_indices: list[int] = []
    kv_positions: list[int] = []
    prefixes = []
    for chunk in chunks:
        start = chunk.sequence.computed
        ids += chunk.sequence.ids[start : start + chunk.count]
        if chunk.needs_logits:
            logits_indices += range(len(ids) - 1, len(ids) + len(chunk.draft))
        ids += chunk.draft
        begin = len(kv_positions)
        kv_positions += range(rule.virtual_tokens + start, rule.virtual_tokens + start + len(ids) - begin)
        if chunk.sequence.prefix:
            prefixes.append((slice(begin, len(ids)), chunk.sequence.prefix))
    kv_position_T = np.asarray(kv_positions, np.int32)
    position_T, second_position_T, attend_begin_T, attend_end_T = rule.arrays(kv_position_T, prefixes)
    return Batch(
        ids_T=np.asarray(ids, np.int32),
        sequence_T=np.repeat(
            np.arange(len(chunks), dtype=np.int32), [chunk.count + len(chunk.draft) for chunk in chunks]
        ),
        kv_position_T=kv_position_T,
        position_T=position_T,
        second_position_T=second_position_T,
        attend_begin_T=attend_begin_T,
        attend_end_T=attend_end_T,
        block_tables_RM=_block_tables(chunks, rule.virtual_tokens),
        adapter_R=np.asarray([chunk.sequence.adapter for chunk in chunks], np.int32),
        logits_indices_L=np.asarray(logits_indices, np.int32),
    )


def _block_tables(chunks: Sequence[ScheduledChunk], virtual_tokens: int) -> np.ndarray:
    """Block tables [R, M] up to the last token of each chunk, filled up with 0."""
    ends = [virtual_tokens + chunk.sequence.computed + chunk.count + len(chunk.draft) for chunk in chunks]
    tables_RM = np.zeros((len(chunks), -(-max(ends) // BLOCK)), np.int32)
    for row, (chunk, end) in enumerate(zip(chunks, ends, strict=True)):
        count = -(-end // BLOCK)
        tables_RM[row, :count] = chunk.sequence.block_table[:count]
    return tables_RM

"""A step as executors take it, made of the parts that are to be computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmctl.infer.engine.positions import Places
from llmctl.infer.engine.sequence import Part
from llmctl.infer.executors.base import BLOCK, Batch


def batch_of(parts: Sequence[Part], places: Places) -> Batch:
    """The step. Logits are wanted of the last token of every row that is finished, and of guesses after it."""
    ids: list[int] = []
    wanted: list[int] = []
    place: list[int] = []
    contexts = []
    for part in parts:
        start = part.row.computed
        ids += part.row.ids[start : start + part.count]
        if part.finishes:
            wanted += range(len(ids) - 1, len(ids) + len(part.drafts))
        ids += part.drafts
        begin = len(place)
        place += range(places.virtual + start, places.virtual + start + len(ids) - begin)
        if part.row.context:
            contexts.append((slice(begin, len(ids)), part.row.context))
    place_T = np.asarray(place, np.int32)
    position_T, second_T, begin_T, end_T = places.arrays(place_T, contexts)
    return Batch(
        ids_T=np.asarray(ids, np.int32),
        row_T=np.repeat(np.arange(len(parts), dtype=np.int32), [part.count + len(part.drafts) for part in parts]),
        place_T=place_T,
        position_T=position_T,
        second_T=second_T,
        begin_T=begin_T,
        end_T=end_T,
        blocks_RM=_blocks(parts, places.virtual),
        adapter_R=np.asarray([part.row.adapter for part in parts], np.int32),
        wanted_L=np.asarray(wanted, np.int32),
    )


def _blocks(parts: Sequence[Part], virtual: int) -> np.ndarray:
    """Blocks of every part's row up to its last token [R, M]; 0 after them."""
    ends = [virtual + part.row.computed + part.count + len(part.drafts) for part in parts]
    blocks_RM = np.zeros((len(parts), -(-max(ends) // BLOCK)), np.int32)
    for row, (part, end) in enumerate(zip(parts, ends, strict=True)):
        count = -(-end // BLOCK)
        blocks_RM[row, :count] = part.row.blocks[:count]
    return blocks_RM

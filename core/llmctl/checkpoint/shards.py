"""Splits a tensor among tensor-parallel ranks and merges it again, by the rules of a family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.sharding import Segment, Split


def split(values: NDArray[Any], rule: Split, rank: int, degree: int) -> NDArray[Any]:
    """The shard of ``values`` of ``rank`` among ``degree`` ranks: its units of every ``Segment``."""
    moved = np.moveaxis(values, rule.axis, 0)
    parts, start = [], 0
    for segment in rule.segments:
        stop = start + _length(segment)
        units = moved[start:stop].reshape(segment.outer, segment.count, segment.inner, *moved.shape[1:])
        share = segment.count * segment.replicas // degree
        first = rank // segment.replicas * share
        parts.append(units[:, first : first + share].reshape(-1, *moved.shape[1:]))
        start = stop
    return np.ascontiguousarray(np.moveaxis(np.concatenate(parts), 0, rule.axis))


def merge(parts: Sequence[NDArray[Any]], rule: Split) -> NDArray[Any]:
    """Merges the shards of all ranks, in order.

    Raises:
        ValueError: Ranks that replicate a unit have different values of it.
    """
    degree, moved = len(parts), [np.moveaxis(part, rule.axis, 0) for part in parts]
    segments, start = [], 0
    for segment in rule.segments:
        share = segment.count * segment.replicas // degree
        stop = start + segment.outer * share * segment.inner
        held = [part[start:stop].reshape(segment.outer, share, segment.inner, *part.shape[1:]) for part in moved]
        for rank, own in enumerate(held):
            if not np.array_equal(own, held[rank - rank % segment.replicas]):
                raise ValueError(f"rank {rank} has other values of {rule.symbol} than the rank that replicates them")
        whole = np.concatenate(held[:: segment.replicas], axis=1)
        segments.append(whole.reshape(-1, *moved[0].shape[1:]))
        start = stop
    return np.ascontiguousarray(np.moveaxis(np.concatenate(segments), 0, rule.axis))


def _length(segment: Segment) -> int:
    return segment.outer * segment.count * segment.inner

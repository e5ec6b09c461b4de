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
        held = segment.held(rank, degree)
        parts.append(units[:, held.start : held.stop].reshape(-1, *moved.shape[1:]))
        start = stop
    return np.ascontiguousarray(np.moveaxis(np.concatenate(parts), 0, rule.axis))


def merge(parts: Sequence[NDArray[Any]], rule: Split) -> NDArray[Any]:
    """Merges the shards of all ranks, in order.

    Raises:
        ValueError: Ranks that replicate a unit have different values of it.
    """
    degree, moved = len(parts), [np.moveaxis(part, rule.axis, 0) for part in parts]
    segments, starts = [], [0] * degree
    for segment in rule.segments:
        held = []
        for rank, part in enumerate(moved):
            units = len(segment.held(rank, degree))
            stop = starts[rank] + segment.outer * units * segment.inner
            held.append(part[starts[rank] : stop].reshape(segment.outer, units, segment.inner, *part.shape[1:]))
            starts[rank] = stop
            if not np.array_equal(held[rank], held[rank - rank % segment.replicas]):
                raise ValueError(f"rank {rank} has other values of {rule.symbol} than the rank that replicates them")
        whole = np.concatenate(held[:: segment.replicas], axis=1)
        segments.append(whole.reshape(-1, *moved[0].shape[1:]))
    return np.ascontiguousarray(np.moveaxis(np.concatenate(segments), 0, rule.axis))


def stretches(rule: Split, rank: int, degree: int) -> list[range]:
    """The places along the split axis that a rank has, in the order of its shard."""
    found, first = [], 0
    for segment in rule.segments:
        held, block = segment.held(rank, degree), segment.count * segment.inner
        for start in range(first, first + segment.outer * block, block):
            found.append(range(start + held.start * segment.inner, start + held.stop * segment.inner))
        first += segment.outer * block
    return found


def part_shape(shape: Sequence[int], rule: Split, rank: int, degree: int) -> tuple[int, ...]:
    """The shape of the shard of ``rank`` of a tensor."""
    length = sum(s.outer * len(s.held(rank, degree)) * s.inner for s in rule.segments)
    return (*shape[: rule.axis], length, *shape[rule.axis + 1 :])


def whole_shape(shape: Sequence[int], rule: Split) -> tuple[int, ...]:
    """The shape of the whole tensor, from the shape of one rank's shard."""
    return (*shape[: rule.axis], sum(map(_length, rule.segments)), *shape[rule.axis + 1 :])


def _length(segment: Segment) -> int:
    return segment.outer * segment.count * segment.inner

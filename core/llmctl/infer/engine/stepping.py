"""Sequences fed to an executor as an engine would: stretches of several side by side, over blocks that lie anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.infer.executors.base import BLOCK, Batch

Array = NDArray[Any]


class Stepping:
    """Sequences and how much of each an executor has seen.

    Args:
        executor: As ``infer.batch.Executor``; its cache is allocated anew.
        graph: Of its model.
        adapters: Of each sequence; -1 = none.
        longest: Places that a sequence may take, virtual tokens included.
        prefix: Virtual tokens [layers, 2, P, K, H] before every sequence; None = none.
    """

    def __init__(
        self,
        executor: Any,
        graph: DecoderSpec,
        adapters: Sequence[int],
        longest: int = 64,
        prefix: Array | None = None,
    ) -> None:
        self._executor, self._graph = executor, graph
        self._virtual = 0 if prefix is None else prefix.shape[2]
        self._adapters = np.asarray(adapters, np.int32)
        rows, each = len(adapters), -(-(longest + self._virtual) // BLOCK)
        executor.allocate(rows * each)
        # Blocks of a sequence stand apart and backwards, so that an executor cannot take them for neighbours.
        self._blocks = np.arange(rows * each, dtype=np.int32).reshape(each, rows).T[:, ::-1].copy()
        self._ids: list[list[int]] = [[] for _ in adapters]
        for row in range(rows if prefix is not None else 0):
            executor.put(self._blocks[row], np.ascontiguousarray(prefix, np.float32))

    def feed(self, *stretches: tuple[int, Sequence[int]]) -> list[Array]:
        """One step: the logits [tokens, V] of each stretch, given as the sequence and the tokens that come next in it.

        A context that is read in both directions must be in one stretch.
        """
        parts = []
        for row, ids in stretches:
            self._ids[row] += [int(token) for token in ids]
            parts.append(_views(self._graph, self._ids[row], self._virtual)[:, -len(ids) :])
        place, position, second, begin, end = np.concatenate(parts, axis=1).astype(np.int32)
        batch = Batch(
            ids_T=np.concatenate([np.asarray(ids, np.int32) for _, ids in stretches]),
            row_T=np.concatenate([np.full(len(ids), i, np.int32) for i, (_, ids) in enumerate(stretches)]),
            place_T=place,
            position_T=position,
            second_T=second if self._graph.prefix_lm else None,
            begin_T=begin,
            end_T=end,
            blocks_RM=np.ascontiguousarray(self._blocks[[row for row, _ in stretches]]),
            adapter_R=self._adapters[[row for row, _ in stretches]],
            wanted_L=np.arange(len(place), dtype=np.int32),
        )
        logits = np.array(self._executor.run(batch))
        return np.split(logits, np.cumsum([len(ids) for _, ids in stretches])[:-1])

    def greedy(self, row: int, prompt: Sequence[int], new: int) -> list[int]:
        """The most probable tokens after a prompt, one step for each."""
        made: list[int] = []
        ids = list(prompt)
        for _ in range(new):
            ids = [int(self.feed((row, ids))[0][-1].argmax())]
            made += ids
        return made


def _views(graph: DecoderSpec, ids: Sequence[int], virtual: int) -> Array:
    """Place, position, second position, first place seen and the place after the last, of every token [5, T]."""
    own = np.arange(len(ids))
    place, second = own + virtual, np.zeros_like(own)
    begin = np.zeros_like(own) if graph.window is None else np.maximum(place + 1 - graph.window, 0)
    end, position = place + 1, place
    if graph.prefix_lm:
        length = list(ids).index(graph.prefix_lm.end)
        mark = next(ids.index(mark) for mark in graph.prefix_lm.mask_ids if mark in ids[:length])
        inside = own < length
        end = np.where(inside, virtual + length, end)
        position, second = np.where(inside, own, mark), np.where(inside, 0, own - length + 1)
    return np.stack([place, position, second, begin, end])

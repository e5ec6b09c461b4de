"""Feeds sequences to an executor as an engine would: chunks of several sequences in one step, in scattered blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.infer.executors.base import BLOCK, Batch

Array = NDArray[Any]


class SequenceFeeder:
    """Sequences, and how much of each an executor has computed.

    Args:
        executor: An ``executors.base.Executor``; its KV cache is allocated anew.
        spec: Shape and rules of its model.
        adapters: Index of each sequence's adapter; -1 = none.
        longest: Maximum number of tokens of a sequence.
        prefix: Virtual tokens [layers, 2, P, K, H] before every sequence; None = no prefix.
    """

    def __init__(
        self,
        executor: Any,
        spec: DecoderSpec,
        adapters: Sequence[int],
        longest: int = 64,
        prefix: Array | None = None,
    ) -> None:
        self._executor, self._spec = executor, spec
        self._virtual = 0 if prefix is None else prefix.shape[2]
        self._adapters = np.asarray(adapters, np.int32)
        count, blocks_each = len(adapters), -(-(longest + self._virtual) // BLOCK)
        executor.allocate(count * blocks_each)
        # Blocks of a sequence are neither adjacent nor ascending, so that an executor that assumes either fails.
        self._tables = np.arange(count * blocks_each, dtype=np.int32).reshape(blocks_each, count).T[:, ::-1].copy()
        self._ids: list[list[int]] = [[] for _ in adapters]
        for table in self._tables if prefix is not None else ():
            executor.write_virtual_tokens(table, np.ascontiguousarray(prefix, np.float32))

    def feed(self, *chunks: tuple[int, Sequence[int]]) -> list[Array]:
        """One step: the logits [tokens, V] of each chunk, given as the index of a sequence and its next tokens.

        A bidirectional prefix must be in one chunk.
        """
        parts = []
        for row, ids in chunks:
            self._ids[row] += [int(token) for token in ids]
            parts.append(_positions(self._spec, self._ids[row], self._virtual)[:, -len(ids) :])
        kv_position, position, second, begin, end = np.concatenate(parts, axis=1).astype(np.int32)
        rows = [row for row, _ in chunks]
        batch = Batch(
            ids_T=np.concatenate([np.asarray(ids, np.int32) for _, ids in chunks]),
            sequence_T=np.concatenate([np.full(len(ids), i, np.int32) for i, (_, ids) in enumerate(chunks)]),
            kv_position_T=kv_position,
            position_T=position,
            second_position_T=second if self._spec.prefix_lm else None,
            attend_begin_T=begin,
            attend_end_T=end,
            block_tables_RM=np.ascontiguousarray(self._tables[rows]),
            adapter_R=self._adapters[rows],
            logits_indices_L=np.arange(len(kv_position), dtype=np.int32),
        )
        logits = np.array(self._executor.run(batch))
        return np.split(logits, np.cumsum([len(ids) for _, ids in chunks])[:-1])

    def greedy(self, row: int, prompt: Sequence[int], new: int) -> list[int]:
        """The tokens of greedy decoding after a prompt, one step for each."""
        made: list[int] = []
        ids = list(prompt)
        for _ in range(new):
            ids = [int(self.feed((row, ids))[0][-1].argmax())]
            made += ids
        return made


def _positions(spec: DecoderSpec, ids: Sequence[int], virtual: int) -> Array:
    """KV position, position id, second position id, begin and end of the attention range, of every token [5, T]."""
    index = np.arange(len(ids))
    kv_position, second = index + virtual, np.zeros_like(index)
    begin = np.zeros_like(index) if spec.window is None else np.maximum(kv_position + 1 - spec.window, 0)
    end, position = kv_position + 1, kv_position
    if spec.prefix_lm:
        length = list(ids).index(spec.prefix_lm.end)
        mask = next(ids.index(token) for token in spec.prefix_lm.mask_ids if token in ids[:length])
        inside = index < length
        end = np.where(inside, virtual + length, end)
        position, second = np.where(inside, index, mask), np.where(inside, 0, index - length + 1)
    return np.stack([kv_position, position, second, begin, end])

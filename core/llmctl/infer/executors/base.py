"""What an executor is asked to compute in one step: tokens of several sequences over a paged KV cache.

A batch mixes chunks of prompts with single tokens of answers; nothing is padded. Letters in this package: T tokens of the
step, R sequences (rows of the block tables), M blocks of a sequence, L tokens whose logits are computed, V vocabulary.
No paddle here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int32]
Float = NDArray[np.float32]

BLOCK = 16
"""KV positions of a cache block."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. The keys and values of all its tokens are written before any of its tokens attends.

    Attributes:
        ids_T: Token ids.
        sequence_T: The sequence of each token: its row of ``block_tables_RM``. A sequence's tokens are adjacent, in order.
        kv_position_T: Position in the KV sequence, from 0; virtual tokens count.
        position_T: Position id for learned positions and RoPE; of 2-D RoPE that of the first half.
        second_position_T: Position id of the second half of 2-D RoPE; None = there is none.
        attend_begin_T: First KV position that the token attends to.
        attend_end_T: KV position after the last that it attends to.
        block_tables_RM: Blocks of each sequence; KV position p is in block ``block_tables_RM[sequence, p // BLOCK]``.
        adapter_R: Adapter of each sequence; -1 = none.
        logits_indices_L: Tokens (indices into T, ascending) whose logits are computed.
    """

    ids_T: Int
    sequence_T: Int
    kv_position_T: Int
    position_T: Int
    second_position_T: Int | None
    attend_begin_T: Int
    attend_end_T: Int
    block_tables_RM: Int
    adapter_R: Int
    logits_indices_L: Int


class Executor(Protocol):
    """Computes steps of one model and holds its KV cache."""

    @property
    def vocab(self) -> int:
        """V."""

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of tokens of a step; None = any number."""

    @property
    def block_bytes(self) -> int:
        """Bytes of a cache block over all layers."""

    def allocate(self, blocks: int) -> None:
        """Allocates a cache of this many blocks; the contents of the previous one are lost."""

    def run(self, batch: Batch) -> Float:
        """Logits [L, V]; valid until the next call."""

    def copy(self, source: int, target: int) -> None:
        """Copies a block."""

    def write_virtual_tokens(self, blocks: Int, prefix: Float) -> None:
        """Writes the keys and values of P virtual tokens into the cache.

        Args:
            blocks: Enough blocks for P positions, in order.
            prefix: Keys and values [layers, 2, P, K, H]: K key-value heads of width H.
        """

"""What an executor is asked to compute in one step: tokens of several sequences, side by side, over a paged cache.

A step mixes stretches of prompts with single tokens of answers; nothing is padded. Letters: T tokens of the step, R
sequences (rows of the block table), L tokens whose logits are wanted, V vocabulary. No paddle here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int32]
Float = NDArray[np.float32]

BLOCK = 16
"""Places in a block of the cache."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. A token's key and value are written at its place before any token of the step is attended to.

    Args:
        ids_T: Token ids.
        row_T: The sequence of each token: its row of ``blocks_RM``. A sequence's tokens stand together, by place.
        place_T: Place in the sequence, from 0; virtual tokens count.
        position_T: Position of the first half of ``2d``, else as ``place_T`` (learned positions and rotation).
        second_T: Position of the second half of ``2d``; None = not asked for.
        begin_T: First place that the token sees.
        end_T: Place after the last that it sees.
        blocks_RM: Blocks of each sequence in the cache; place p lies in block ``blocks_RM[row, p // BLOCK]``.
        adapter_R: Adapter of each sequence; -1 = none.
        wanted_L: The tokens (indices into T, ascending) whose logits are wanted.
    """

    ids_T: Int
    row_T: Int
    place_T: Int
    position_T: Int
    second_T: Int | None
    begin_T: Int
    end_T: Int
    blocks_RM: Int
    adapter_R: Int
    wanted_L: Int


class Executor(Protocol):
    """Computes steps of one model and holds its cache of keys and values."""

    @property
    def vocab(self) -> int:
        """V."""

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of a step; None = any number."""

    @property
    def block_bytes(self) -> int:
        """Memory that one block of the cache takes, over all layers."""

    def allocate(self, blocks: int) -> None:
        """Makes room for so many blocks; what the cache held is lost."""

    def run(self, batch: Batch) -> Float:
        """Logits [L, V]; valid until the next call."""

    def copy(self, source: int, target: int) -> None:
        """Copies a block of the cache."""

    def put(self, blocks: Int, pairs: Float) -> None:
        """Writes keys and values of places 0 to P [layers, 2, P, K, H] into the blocks: virtual tokens."""

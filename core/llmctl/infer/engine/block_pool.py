"""Blocks of the KV cache with reference counts. A block that is free keeps its content, and is found by its hash until it is
allocated again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np


class BlockPool:
    """The blocks 0 to ``count - 1``.

    Args:
        count: Number of blocks.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._ref_count = [0] * count
        # Free blocks that are still found by their hash, the least recently used first.
        self._cached_free: OrderedDict[int, None] = OrderedDict()
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks without a reference."""
        return len(self._free) + len(self._cached_free)

    @property
    def num_used(self) -> int:
        """Blocks with a reference."""
        return self.count - self.num_free

    def is_shared(self, block: int) -> bool:
        """Whether the block has several references, so that it must not be written to."""
        return self._ref_count[block] > 1

    def allocate(self) -> int | None:
        """A free block with one reference; None = there is none."""
        if self._free:
            block = self._free.pop()
        elif self._cached_free:
            block, _ = self._cached_free.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        else:
            return None
        self._ref_count[block] = 1
        return block

    def find(self, block_hash: bytes) -> int | None:
        """The block with this hash, with one more reference; None = there is none."""
        block = self._block_of.get(block_hash)
        if block is not None:
            self.acquire(block)
        return block

    def acquire(self, block: int) -> None:
        """Adds a reference."""
        if not self._ref_count[block]:
            del self._cached_free[block]
        self._ref_count[block] += 1

    def release(self, block: int) -> None:
        """Drops a reference. Release a sequence's blocks last to first: a cached block is reachable only through the one before it."""
        assert self._ref_count[block] > 0, f"block {block} has no reference"
        self._ref_count[block] -= 1
        if self._ref_count[block]:
            return
        if block in self._hash_of:
            self._cached_free[block] = None
        else:
            self._free.append(block)

    def cache_block(self, block: int, block_hash: bytes) -> int:
        """Makes a full block findable by its hash, or releases it if another block with this hash is findable already.

        Returns:
            The block to use from now on.
        """
        known = self._block_of.get(block_hash)
        if known is not None:
            self.acquire(known)
            self.release(block)
            return known
        self._hash_of[block], self._block_of[block_hash] = block_hash, block
        return block


def root_hash(adapter: int, prefix: Sequence[int]) -> bytes:
    """The hash before a sequence's first block: of all that keys and values depend on besides the tokens before them.

    Args:
        adapter: Index of the sequence's adapter.
        prefix: Tokens that attend in both directions; empty = none.
    """
    return hashlib.blake2b(np.asarray([adapter, *prefix], np.int64).tobytes(), digest_size=16).digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a full block.

    Args:
        parent: Hash of the block before it.
        tokens: Its tokens.
    """
    return hashlib.blake2b(parent + np.asarray(tokens, np.int64).tobytes(), digest_size=16).digest()

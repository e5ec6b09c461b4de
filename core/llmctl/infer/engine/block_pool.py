"""The blocks of the paged cache: who holds which, and which hold the beginning of a text that may come again.

A block is free, held by one or more sequences, or idle: held by nobody, but known by the key of its text, so that it is
found when the text comes again. Idle blocks are given away when free ones run out, the longest unused first.
What lies in them is the executor's; which places of a sequence they are is in ``tables``.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np


class Blocks:
    """The blocks 0 to ``count - 1``.

    Args:
        count: Blocks of the cache.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.count - self.available

    def shared(self, block: int) -> bool:
        """Whether several hold the block, so that it must not be written to."""
        return self._holders[block] > 1

    def take(self) -> int | None:
        """A block for its first holder; None = there is none."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        else:
            return None
        self._holders[block] = 1
        return block

    def find(self, key: bytes) -> int | None:
        """The block with this key, held once more; None = there is none."""
        block = self._block_of.get(key)
        if block is not None:
            self.hold(block)
        return block

    def hold(self, block: int) -> None:
        """One more holder."""
        if not self._holders[block]:
            del self._idle[block]
        self._holders[block] += 1

    def release(self, block: int) -> None:
        """One holder less. Whoever releases a text begins with its end, since nothing is found behind a lost block."""
        assert self._holders[block] > 0, f"block {block} is held by nobody"
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._key_of:
            self._idle[block] = None
        else:
            self._free.append(block)

    def publish(self, block: int, key: bytes) -> int:
        """Makes a full block known, or releases it where one with the same text is known already.

        Returns:
            The block that its holder has now.
        """
        known = self._block_of.get(key)
        if known is not None:
            self.hold(known)
            self.release(block)
            return known
        self._key_of[block], self._block_of[key] = key, block
        return block


def first_key(adapter: int, context: Sequence[int]) -> bytes:
    """What the keys of a sequence begin with: all that keys and values depend on beside the tokens before.

    Args:
        adapter: The sequence's adapter.
        context: Tokens that see each other in both directions; empty = none.
    """
    return hashlib.blake2b(np.asarray([adapter, *context], np.int64).tobytes(), digest_size=16).digest()


def next_key(before: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a full block.

    Args:
        before: The key of the block before it.
        tokens: Its tokens.
    """
    return hashlib.blake2b(before + np.asarray(tokens, np.int64).tobytes(), digest_size=16).digest()

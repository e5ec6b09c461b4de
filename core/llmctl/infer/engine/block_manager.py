"""Which blocks a sequence's places lie in: found again by their text, shared by forks, copied before they are written to.

Virtual tokens are written once and their full blocks are every sequence's first; a last partial one is copied.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llmctl.errors import ConfigError
from llmctl.infer.engine.positions import Context
from llmctl.infer.executors.base import BLOCK, Executor, Float


@dataclass(eq=False, slots=True)
class Row:
    """A sequence: its tokens, and how far the cache holds them.

    Attributes:
        ids: Tokens, virtual ones not among them.
        adapter: Its adapter; -1 = none.
        context: Tokens that are read in both directions; None = none.
        computed: Tokens whose keys and values are in the cache.
        blocks: Its blocks, by place; empty = it has none.
        keys: Keys of its full blocks, after the one that they begin with.
    """

    ids: list[int]
    adapter: int = -1
    context: Context | None = None
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.ids) - self.computed


class Tables:
    """The blocks of all sequences of an executor.

    Args:
        executor: Holds the cache.
        blocks: Blocks of the cache.
        prefix: Keys and values of virtual tokens [layers, 2, P, K, H]; None = there are none.
        share: Whether blocks are found again by their text.

    Raises:
        ConfigError: The cache does not hold the virtual tokens.
    """

    def __init__(self, executor: Executor, blocks: int, prefix: Float | None = None, share: bool = True) -> None:
        executor.allocate(blocks)
        self.blocks, self.share = Blocks(blocks), share
        self.virtual = 0 if prefix is None else prefix.shape[2]
        self._copy = executor.copy
        taken = [self.blocks.take() for _ in range(-(-self.virtual // BLOCK))]
        self._virtual = [block for block in taken if block is not None]
        if len(self._virtual) < len(taken):
            raise ConfigError(
                f"a cache of {blocks} blocks does not hold {self.virtual} virtual tokens, which take {len(taken)}; give it "
                "more memory"
            )
        if prefix is not None:
            executor.put(np.asarray(self._virtual, np.int32), prefix)

    def most(self, length: int, prompt: int, width: int = 1) -> int:
        """Blocks that ``width`` sequences of ``length`` tokens take at most, beside those of the virtual tokens, when their
        first ``prompt`` tokens are the same."""
        whole, virtual = self._blocks(length), self.virtual // BLOCK
        same = (self.virtual + prompt) // BLOCK if self.share else virtual
        return same - virtual + width * (whole - same)

    def missing(self, row: Row) -> int:
        """Blocks that the row lacks for all its tokens."""
        return max(0, self._blocks(len(row.ids)) - len(row.blocks))

    def open(self, row: Row) -> None:
        """Gives the row the blocks of the virtual tokens and those that hold its beginning already.

        At least its last token is left to compute, since nobody keeps logits.
        """
        row.computed, row.keys = 0, [self._first(row)]
        row.blocks = self._virtual[: self.virtual // BLOCK]
        for block in row.blocks:
            self.blocks.hold(block)
        while self.share and self._end(len(row.blocks)) < len(row.ids):
            key = self._key(row, len(row.blocks))
            known = self.blocks.find(key)
            if known is None:
                return
            row.blocks.append(known)
            row.keys.append(key)
            row.computed = self._end(len(row.blocks) - 1)

    def reserve(self, row: Row, count: int) -> bool:
        """Makes room for the next ``count`` tokens in blocks of the row's own; False = blocks have run out, and those that
        were found are kept."""
        begin, needed = (self.virtual + row.computed) // BLOCK, self._blocks(row.computed + count)
        for index in range(begin, min(len(row.blocks), needed)):
            if self.blocks.shared(row.blocks[index]) and not self._own(row, index):
                return False
        while len(row.blocks) < needed:
            block = self.blocks.take()
            if block is None:
                return False
            if len(row.blocks) < len(self._virtual):
                self._copy(self._virtual[-1], block)
            row.blocks.append(block)
        return True

    def commit(self, row: Row, count: int) -> None:
        """Takes note that the next ``count`` tokens are in the cache, and makes blocks known that are full now: of
        equal blocks one is kept."""
        row.computed += count
        first = self.virtual // BLOCK
        while self.share and self._end(first + len(row.keys) - 1) <= row.computed:
            index = first + len(row.keys) - 1
            row.keys.append(self._key(row, index))
            row.blocks[index] = self.blocks.publish(row.blocks[index], row.keys[-1])

    def fork(self, row: Row) -> Row:
        """The same sequence once more, on the same blocks."""
        for block in row.blocks:
            self.blocks.hold(block)
        return Row([*row.ids], row.adapter, row.context, row.computed, [*row.blocks], [*row.keys])

    def close(self, row: Row) -> None:
        """Releases the row's blocks."""
        for block in reversed(row.blocks):
            self.blocks.release(block)
        row.blocks, row.keys, row.computed = [], [], 0

    def held(self, rows: list[Row]) -> int:
        """Places of the cache that hold something for these rows or the virtual tokens; what is shared counts once."""
        filled = {block: BLOCK for block in self._virtual}
        if self.virtual % BLOCK:
            filled[self._virtual[-1]] = self.virtual % BLOCK
        for row in rows:
            places = self.virtual + row.computed
            for index, block in enumerate(row.blocks):
                filled[block] = max(filled.get(block, 0), min(BLOCK, max(0, places - index * BLOCK)))
        return sum(filled.values())

    def _own(self, row: Row, index: int) -> bool:
        """Puts a copy in the place of a block that others hold too."""
        block = self.blocks.take()
        if block is None:
            return False
        self._copy(row.blocks[index], block)
        self.blocks.release(row.blocks[index])
        row.blocks[index] = block
        return True

    def _blocks(self, tokens: int) -> int:
        return -(-(self.virtual + tokens) // BLOCK)

    def _end(self, index: int) -> int:
        """Tokens up to the end of a block, virtual ones not counted."""
        return (index + 1) * BLOCK - self.virtual

    def _key(self, row: Row, index: int) -> bytes:
        tokens = row.ids[max(0, self._end(index - 1)) : self._end(index)]
        return next_key(row.keys[index - self.virtual // BLOCK], tokens)

    def _first(self, row: Row) -> bytes:
        return first_key(row.adapter, row.ids[: row.context.length] if row.context else ())


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

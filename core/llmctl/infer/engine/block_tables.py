"""Which blocks a sequence's places lie in: found again by their text, shared by forks, copied before they are written to.

Virtual tokens are written once and their full blocks are every sequence's first; a last partial one is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llmctl.errors import ConfigError
from llmctl.infer.engine.block_pool import Blocks, first_key, next_key
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

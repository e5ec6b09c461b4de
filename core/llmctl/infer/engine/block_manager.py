"""Block tables of sequences: prefix caching, blocks that forks share, copy on write.

Virtual tokens are written once. Their full blocks are the first of every sequence; a partial last one is copied.
"""

from __future__ import annotations

import numpy as np

from llmctl.errors import ConfigError
from llmctl.infer.engine.block_pool import BlockPool, block_hash, root_hash
from llmctl.infer.engine.sequence import Sequence
from llmctl.infer.executors.base import BLOCK, Executor, Float


class BlockManager:
    """The block tables of all sequences of an executor.

    Args:
        executor: Holds the KV cache.
        blocks: Number of blocks.
        prefix: Keys and values of virtual tokens [layers, 2, P, K, H]; None = there are none.
        share: Whether blocks are found again by their content (prefix caching).

    Attributes:
        pool: The blocks.
        share: As given.
        virtual_tokens: P.

    Raises:
        ConfigError: The cache does not hold the virtual tokens.
    """

    def __init__(self, executor: Executor, blocks: int, prefix: Float | None = None, share: bool = True) -> None:
        self._executor, self._blocks, self._prefix, self.share = executor, blocks, prefix, share
        self.virtual_tokens = 0 if prefix is None else prefix.shape[2]
        self._copy = executor.copy
        self.reset()

    def reset(self, executor: Executor | None = None) -> None:
        """Begins with an empty cache; no sequence may have blocks.

        Args:
            executor: One that holds the cache from now on; None = the same as before.

        Raises:
            ConfigError: The cache does not hold the virtual tokens.
        """
        if executor is not None:
            self._executor, self._copy = executor, executor.copy
        blocks, prefix = self._blocks, self._prefix
        self._executor.allocate(blocks)
        self.pool = BlockPool(blocks)
        allocated = [self.pool.allocate() for _ in range(-(-self.virtual_tokens // BLOCK))]
        self._virtual_blocks = [block for block in allocated if block is not None]
        if len(self._virtual_blocks) < len(allocated):
            raise ConfigError(
                f"a cache of {blocks} blocks does not hold {self.virtual_tokens} virtual tokens, which take {len(allocated)}; "
                "give it more memory"
            )
        if prefix is not None:
            self._executor.write_virtual_tokens(np.asarray(self._virtual_blocks, np.int32), prefix)

    def max_blocks(self, length: int, prompt: int, width: int = 1) -> int:
        """Maximum number of blocks that ``width`` sequences of ``length`` tokens take, besides those of the virtual tokens, if their first
        ``prompt`` tokens are equal."""
        whole, virtual = self._blocks_for(length), self.virtual_tokens // BLOCK
        equal = (self.virtual_tokens + prompt) // BLOCK if self.share else virtual
        return equal - virtual + width * (whole - equal)

    def missing_blocks(self, sequence: Sequence) -> int:
        """Blocks that the sequence lacks for all its tokens."""
        return max(0, self._blocks_for(len(sequence.ids)) - len(sequence.block_table))

    def start(self, sequence: Sequence) -> None:
        """Gives a sequence without blocks those of the virtual tokens, and those that hold its first tokens already.

        At least its last token is left to compute, since logits are not cached.
        """
        sequence.computed, sequence.block_hashes = 0, [self._root_hash(sequence)]
        sequence.block_table = self._virtual_blocks[: self.virtual_tokens // BLOCK]
        for block in sequence.block_table:
            self.pool.acquire(block)
        while self.share and self._end(len(sequence.block_table)) < len(sequence.ids):
            found_hash = self._block_hash(sequence, len(sequence.block_table))
            cached = self.pool.find(found_hash)
            if cached is None:
                return
            sequence.block_table.append(cached)
            sequence.block_hashes.append(found_hash)
            sequence.computed = self._end(len(sequence.block_table) - 1)

    def reserve(self, sequence: Sequence, count: int) -> bool:
        """Makes room for the next ``count`` tokens in blocks that no other sequence refers to; False = there are too few free
        blocks, and those that were allocated are kept."""
        begin, needed = (self.virtual_tokens + sequence.computed) // BLOCK, self._blocks_for(sequence.computed + count)
        for index in range(begin, min(len(sequence.block_table), needed)):
            if self.pool.is_shared(sequence.block_table[index]) and not self._copy_on_write(sequence, index):
                return False
        while len(sequence.block_table) < needed:
            block = self.pool.allocate()
            if block is None:
                return False
            if len(sequence.block_table) < len(self._virtual_blocks):
                self._copy(self._virtual_blocks[-1], block)
            sequence.block_table.append(block)
        return True

    def commit(self, sequence: Sequence, count: int) -> None:
        """Notes that the next ``count`` tokens are in the cache, and makes blocks findable that are full now. Of blocks with
        equal content one is kept."""
        sequence.computed += count
        first = self.virtual_tokens // BLOCK
        while self.share and self._end(first + len(sequence.block_hashes) - 1) <= sequence.computed:
            index = first + len(sequence.block_hashes) - 1
            sequence.block_hashes.append(self._block_hash(sequence, index))
            sequence.block_table[index] = self.pool.cache_block(sequence.block_table[index], sequence.block_hashes[-1])

    def fork(self, sequence: Sequence) -> Sequence:
        """A copy of the sequence on the same blocks."""
        for block in sequence.block_table:
            self.pool.acquire(block)
        return Sequence(
            [*sequence.ids], sequence.adapter, sequence.prefix, sequence.computed, [*sequence.block_table],
            [*sequence.block_hashes],
        )  # fmt: skip

    def free(self, sequence: Sequence) -> None:
        """Releases the sequence's blocks."""
        for block in reversed(sequence.block_table):
            self.pool.release(block)
        sequence.block_table, sequence.block_hashes, sequence.computed = [], [], 0

    def used_positions(self, sequences: list[Sequence]) -> int:
        """Positions of the cache that hold something of these sequences or the virtual tokens; what is shared counts once."""
        filled = {block: BLOCK for block in self._virtual_blocks}
        if self.virtual_tokens % BLOCK:
            filled[self._virtual_blocks[-1]] = self.virtual_tokens % BLOCK
        for sequence in sequences:
            positions = self.virtual_tokens + sequence.computed
            for index, block in enumerate(sequence.block_table):
                filled[block] = max(filled.get(block, 0), min(BLOCK, max(0, positions - index * BLOCK)))
        return sum(filled.values())

    def _copy_on_write(self, sequence: Sequence, index: int) -> bool:
        """Replaces a block that other sequences refer to by a copy; False = there is no free block."""
        block = self.pool.allocate()
        if block is None:
            return False
        self._copy(sequence.block_table[index], block)
        self.pool.release(sequence.block_table[index])
        sequence.block_table[index] = block
        return True

    def _blocks_for(self, tokens: int) -> int:
        return -(-(self.virtual_tokens + tokens) // BLOCK)

    def _end(self, index: int) -> int:
        """Number of tokens up to the end of a block, without virtual ones."""
        return (index + 1) * BLOCK - self.virtual_tokens

    def _block_hash(self, sequence: Sequence, index: int) -> bytes:
        tokens = sequence.ids[max(0, self._end(index - 1)) : self._end(index)]
        return block_hash(sequence.block_hashes[index - self.virtual_tokens // BLOCK], tokens)

    def _root_hash(self, sequence: Sequence) -> bytes:
        return root_hash(sequence.adapter, sequence.ids[: sequence.prefix.length] if sequence.prefix else ())

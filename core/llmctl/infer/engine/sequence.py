"""A sequence of tokens and its blocks in the KV cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmctl.infer.engine.positions import BidirectionalPrefix


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens, and how many of them the KV cache holds.

    Attributes:
        ids: Tokens, without virtual ones.
        adapter: Index of its adapter; -1 = none.
        prefix: Tokens that attend in both directions; None = causal.
        computed: Number of tokens whose keys and values are in the cache.
        block_table: Blocks in the order of positions; empty = it has none.
        block_hashes: Hashes of its full blocks, after the root hash.
    """

    ids: list[int]
    adapter: int = -1
    prefix: BidirectionalPrefix | None = None
    computed: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Number of tokens that are not computed yet."""
        return len(self.ids) - self.computed

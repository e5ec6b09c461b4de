"""How many blocks the KV cache has: by a limit in bytes, or a share of the free memory."""

from __future__ import annotations

from llmctl.errors import ConfigError
from llmctl.infer.executors.base import BLOCK
from llmctl.io.sizes import parse_bytes_or_share
from llmctl.runtime.memory import free_memory


def blocks_for(limit: str | int | float, block_bytes: int, tokens: int = 1, free: int | None = None) -> int:
    """Blocks that fit the limit.

    Args:
        limit: Bytes or a share of the free memory, as ``parse_bytes_or_share`` reads them.
        block_bytes: Memory of a block, over all layers.
        tokens: Positions of the shortest sequence that must fit.
        free: Free memory in bytes; None = what is free here.

    Raises:
        ConfigError: The limit is not a size, or not even such a sequence fits.
    """
    amount = parse_bytes_or_share(limit, "cache_memory=")
    share = isinstance(amount, float)
    if share:
        free = free_memory() if free is None else free
        amount = int(free * amount)
    blocks, needed = amount // block_bytes, -(-tokens // BLOCK)
    if blocks < needed:
        raise ConfigError(
            f"a cache of {limit}{f' of {free} free bytes' if share else ''} has room for {blocks * BLOCK} tokens; one "
            f"sequence needs {tokens}, which takes {needed * block_bytes} bytes. Give the cache more memory"
        )
    return blocks

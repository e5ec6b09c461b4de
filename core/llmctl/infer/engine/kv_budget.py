"""How many blocks a paged cache has: a limit in bytes, or a share of the memory that is free."""

from __future__ import annotations

import re

from llmctl.errors import ConfigError
from llmctl.infer.executors.base import BLOCK
from llmctl.runtime.memory import free_memory

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def blocks_for(limit: str | int | float, block_bytes: int, tokens: int = 1, free: int | None = None) -> int:
    """Blocks that fit the limit.

    Args:
        limit: Bytes (``2GiB``, ``500MB``, a whole number), or a share of free memory (``30%``, or between 0 and 1).
        block_bytes: Memory of a block, over all layers.
        tokens: Places of the shortest sequence that must fit.
        free: Free memory in bytes; None = what is free here.

    Raises:
        ConfigError: The limit cannot be read, or not even such a sequence fits.
    """
    amount, share = parse_limit(limit)
    if share:
        free = free_memory() if free is None else free
        amount = int(free * share)
    blocks, needed = amount // block_bytes, -(-tokens // BLOCK)
    if blocks < needed:
        raise ConfigError(
            f"a cache of {limit}{f' of {free} free bytes' if share else ''} has room for {blocks * BLOCK} tokens; one "
            f"sequence needs {tokens}, which takes {needed * block_bytes} bytes. Give the cache more memory"
        )
    return blocks


def parse_limit(limit: str | int | float) -> tuple[int, float]:
    """Bytes and 0, or 0 and a share of free memory.

    Raises:
        ConfigError: It is neither.
    """
    found = re.fullmatch(r"\s*(\d+|\d*\.\d+)\s*(%|[KMG]?I?B|)\s*", str(limit), re.IGNORECASE)
    if found:
        number, unit = float(found[1]), found[2].upper()
        if unit == "%" and 0 < number <= 100:
            return 0, number / 100
        if not unit and 0 < number <= 1 and "." in found[1]:
            return 0, number
        if unit in UNITS and int(number * UNITS[unit]) > 0 and (unit or "." not in found[1]):
            return int(number * UNITS[unit]), 0.0
    raise ConfigError(
        f"{limit!r} is no size of a cache; give bytes (2GiB, 500MB) or a share of free memory (30%, or 0.3)"
    )

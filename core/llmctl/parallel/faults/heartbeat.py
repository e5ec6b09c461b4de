"""Signs of life of ranks on other machines, whose launchers cannot tell that one was killed. Nothing here imports paddle.

Each rank counts in the store, in a thread with a connection of its own; who waits for others looks at their counts.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from llmctl.parallel.rank import KNOWN, NODES, PeerLost

BEAT, LIMIT = 5.0, 60.0
"""Seconds between two signs, and without one until a rank counts as lost."""


def start(connect: Callable[[], Any], number: int) -> None:
    """Counts from now on, if there are several machines.

    Args:
        connect: Opens a connection to the store.
        number: The rank.
    """
    if NODES not in os.environ:
        return

    def beat() -> None:
        store = connect()
        while True:
            store.add(_key(number), 1)
            time.sleep(BEAT)

    threading.Thread(target=_quietly, args=(beat,), name="heartbeat", daemon=True).start()


class Signs:
    """The signs of the other ranks, while one waits for them.

    Args:
        store: The connection of the waiting thread.
        number: This rank.
        size: Number of ranks.
    """

    def __init__(self, store: Any, number: int, size: int) -> None:
        self._store, self._others = store, [rank for rank in range(size) if rank != number]
        now = time.monotonic()
        self._counts, self._seen = dict.fromkeys(self._others, -1), dict.fromkeys(self._others, now)
        self._next = now + BEAT

    def check(self) -> None:
        """Looks at the counts, from time to time.

        Raises:
            PeerLost: A rank has not counted for ``LIMIT`` seconds.
        """
        now = time.monotonic()
        if NODES not in os.environ or now < self._next:
            return
        self._next = now + BEAT
        for rank in self._others:
            count = self._store.add(_key(rank), 0)
            if count != self._counts[rank]:
                self._counts[rank], self._seen[rank] = count, now
            elif now - self._seen[rank] > LIMIT:
                raise PeerLost(
                    f"rank {rank} has given no sign of life for {LIMIT:.0f} s; was it killed, or its machine lost?",
                    cause=KNOWN,
                )


def _key(rank: int) -> str:
    return f"llmctl/alive/{rank}"


def _quietly(beat: Callable[[], None]) -> None:
    """Ends when the store is gone: then the rank that holds it is, which the others notice themselves."""
    try:
        beat()
    except Exception:
        return

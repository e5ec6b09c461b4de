"""The first failure of a run, told through the common store: the other ranks end with its reason and exit code. Nothing here imports paddle.

A thread of each rank looks at the store, since the main thread may be inside of a collective operation: that breaks when the rank
that failed is gone, and if it was rank 0, so is the store. So that one waits, a moment, until the others have heard of it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from llmctl.io.json_object import as_json, parse_json
from llmctl.parallel.rank import KNOWN, PeerLost

CLAIMS, FAILED, FIRST, HEARD = (f"llmctl/failure/{name}" for name in ("claims", "told", "first", "heard"))
"""Keys of the store: how many ranks failed; whether the first has told; what it told; how many have heard it."""

POLL, PATIENCE = 0.02, 3.0
"""Seconds between two looks at who has heard, and for how long."""


class Failures:
    """What a rank tells and hears of failures. A store is always the connection of the calling thread.

    Args:
        number: The rank.
        size: Number of ranks.
    """

    def __init__(self, number: int, size: int) -> None:
        self._number, self._size = number, size
        self._heard: PeerLost | None = None
        self._lock = threading.Lock()

    def look(self, store: Any) -> PeerLost | None:
        """What another rank told of its failure; None = nothing.

        Args:
            store: The store.
        """
        with self._lock:
            if self._heard is None and store.add(FAILED, 0):
                told = parse_json(bytes(store.get(FIRST)))
                if told["rank"] != self._number:
                    self._heard = PeerLost(f"rank {told['rank']} failed: {told['reason']}", told["code"], KNOWN)
                    store.add(HEARD, 1)
            return self._heard

    def tell(self, store: Any, reason: str, code: int, waits: bool) -> PeerLost | None:
        """Tells that this rank fails, unless another one has told so before; returns what that one told.

        Args:
            store: The store; it may be gone, with rank 0.
            reason: Why it fails.
            code: Its exit code.
            waits: Whether to wait until the others have heard.
        """
        with contextlib.suppress(Exception):
            if store.add(CLAIMS, 1) > 1:
                return self.look(store)
            store.set(FIRST, as_json({"rank": self._number, "reason": reason, "code": code}))
            store.add(FAILED, 1)
            end = time.monotonic() + PATIENCE
            while waits and store.add(HEARD, 0) < self._size - 1 and time.monotonic() < end:
                time.sleep(POLL)
            return None
        return self._heard

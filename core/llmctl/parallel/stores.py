"""The stores of keys and values in which ranks find each other: Paddle's, on connections that send at once.

Paddle leaves a small message until the one before it is acknowledged, which the other side does after 40 ms: a question took 44 ms,
and takes 0.1 ms here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Any

from paddle.base import core

SECONDS = 900
"""How long a store waits for a key."""

DESCRIPTORS = "/dev/fd"
"""Lists the open files of this process."""


def first() -> Any:
    """The store that all ranks share; rank 0 holds it."""
    store = core.create_or_get_global_tcp_store()
    send_at_once(_common()[1])
    return store


def connection() -> Any:
    """Another connection to the store that all ranks share: one connection serves one thread."""
    host, port = _common()
    return _opened(host, port, False)


def own(key: str, common: Any, holds: bool) -> Any:
    """A store for one group of ranks.

    Args:
        key: Where its address is told.
        common: The store that all ranks share.
        holds: Whether this rank holds the new store.
    """
    key = f"llmctl/{key}"
    if not holds:
        host, _, port = bytes(common.get(key)).decode().rpartition(":")
        return _opened(host, int(port), False)
    host = os.environ["PADDLE_CURRENT_ENDPOINT"].rpartition(":")[0]
    with socket.socket() as free:
        # The port is held until the store, which sets this too, listens there.
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind((host, 0))
        number = free.getsockname()[1]
        store = _opened(host, number, True)
    common.set(key, f"{host}:{number}".encode())
    return store


def _common() -> tuple[str, int]:
    host, _, port = os.environ["PADDLE_MASTER"].rpartition(":")
    return host, int(port)


def _opened(host: str, port: int, holds: bool) -> Any:
    # A store of one process does not wait for others when it is made.
    store = core.TCPStore(host, port, holds, 1, SECONDS)
    send_at_once(port)
    return store


def send_at_once(port: int) -> None:
    """Makes this process's connections from and to a port, and those that will come to it, send at once."""
    with contextlib.suppress(OSError):
        for name in os.listdir(DESCRIPTORS):
            with contextlib.suppress(OSError):
                _send_at_once(int(name), port)


def _send_at_once(descriptor: int, port: int) -> None:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return
    with socket.socket(fileno=os.dup(descriptor)) as one:
        if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
            return
        ends = [one.getsockname()[1]]
        with contextlib.suppress(OSError):
            ends.append(one.getpeername()[1])
        if port in ends:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

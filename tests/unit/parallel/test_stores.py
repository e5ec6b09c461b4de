"""The connections of stores send at once, on all ranks."""

import contextlib
import os
import socket
import stat

from paddle import distributed
from paddle.base import core

from llmctl.parallel import stores
from llmctl.testing.ranks import run_ranks


def _waiting(port):
    """Of this process's connections from and to a port: whether each leaves small messages until others are acknowledged."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    if one.family == socket.AF_INET and port in (one.getsockname()[1], one.getpeername()[1]):
                        found.append(not one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    return found


def _connections(mesh):
    """Of the store that all share, of that of a group, and of one as Paddle makes it."""
    common = int(os.environ["PADDLE_MASTER"].rpartition(":")[2])
    ports = []
    opened, stores._opened = stores._opened, lambda host, port, holds: ports.append(port) or opened(host, port, holds)
    distributed.new_group([0, 1])
    mesh.barrier()
    found = _waiting(common), _waiting(ports[0])
    paddles = core.TCPStore("127.0.0.1", ports[0], False, 1, 10)
    mesh.barrier()
    return *found, True in _waiting(ports[0]), bool(paddles)


def test_connections_of_stores_send_at_once_which_those_of_paddle_do_not():
    for common, own, paddles, _ in run_ranks(2, _connections):
        assert common and not any(common)
        assert own and not any(own)
        assert paddles

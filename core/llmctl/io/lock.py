"""One process at a time: a lock file says which process holds a folder or file.

The lock is ``flock``, which the OS releases when the process ends in any way; the content of the file is for messages. Where
a file system has no ``flock``, as some network file systems, the process that creates the file holds the lock, and after a crash the
file has to be deleted by hand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llmctl.io.written import Holder, parse_written

POLL = 0.2
"""Seconds between two tries."""
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Busy(Exception):
    """Another process holds the lock; the text says which."""


@contextlib.contextmanager
def hold(path: Path, wait: float = 0.0, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock file ``path`` during the block, and deletes it afterwards.

    Args:
        path: The lock file, in an existing folder.
        wait: Seconds to wait for a process that holds it.
        on_wait: Called once, with the description of that process, before waiting.

    Raises:
        Busy: Another process still holds it.
        OSError: The file cannot be created.
    """
    handle = _acquire(path, wait, on_wait)
    try:
        # The lock works without the description, which cannot be written if the disk is full.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(_this_process()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            if _same(handle, path):
                path.unlink()
        os.close(handle)


def try_flock(handle: int) -> bool | None:
    """Locks an open file or folder until it is closed: True; False = another process has it, None = there is no ``flock``."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # NFS does not lock what is open only for reading, such as a folder.
        if error.errno in (*_NO_FLOCK, errno.EBADF):
            return None
        raise
    return True


def _acquire(path: Path, wait: float, on_wait: Callable[[str], None] | None) -> int:
    began = time.monotonic()
    while True:
        handle, created = _open(path)
        locked = try_flock(handle)
        # The holder deletes the file; a lock on a deleted file excludes nobody.
        if (locked or (locked is None and created)) and _same(handle, path):
            return handle
        holder = _holder(handle)
        os.close(handle)
        if locked is None:
            holder += f" (this file system has no locks: if that process has ended, delete {path})"
        if time.monotonic() - began >= wait and locked is not True:
            raise Busy(holder)
        if on_wait and wait:
            on_wait(holder)
            on_wait = None
        time.sleep(min(POLL, wait))


def _open(path: Path) -> tuple[int, bool]:
    """The open lock file, and whether this process created it."""
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        # Its holder may delete it in between.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR), False


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])[:300],
    }


def _holder(handle: int) -> str:
    try:
        who = parse_written(os.pread(handle, 4096, 0), Holder)
        return f"process {who['pid']} on {who['host']} (since {who['started']}: {who['command']})"
    except (ValueError, OSError):
        return "another process"

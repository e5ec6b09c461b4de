"""Signals that end a command: Ctrl-C, and those of schedulers and closed terminals. Nothing here imports paddle."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Schedulers send SIGTERM, a closed terminal SIGHUP, and Slurm SIGUSR1 before a deadline if `--signal` asks for it."""


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None] | signal.Handlers, goes_on: bool = False) -> Iterator[None]:
    """Installs a handler of all of them and puts back those that were there. Outside the main thread nothing is changed.

    Signals that were ignored before, as under ``nohup``, stay ignored. Handlers not installed from Python are left in place,
    since they could not be put back.

    Args:
        handler: Gets the signal's number and the frame; ``SIG_DFL`` = the process ends at once, whatever code runs.
        goes_on: Whether the system call goes on that a signal interrupts, where it can: paddle's connections would break.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    changed = {number: old for number, old in before.items() if old not in (None, signal.SIG_IGN)}
    try:
        for number in changed:
            signal.signal(number, handler)
            signal.siginterrupt(number, not goes_on)
        yield
    finally:
        for number, old in changed.items():
            signal.signal(number, old)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """A signal that comes in the block takes effect after it, with the handlers from before, whatever a library installs meanwhile."""
    noted: list[int] = []
    with handled(lambda number, frame: noted.append(number)):
        yield
    if noted:
        os.kill(os.getpid(), noted[0])

"""Signals that end a training run, such as Ctrl-C: the current step is finished and saved. Nothing here imports paddle."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from llmctl.parallel.rank import LAUNCHER
from llmctl.runtime.signals import handled


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Attributes:
        signal: Its number.
        step: The step that was finished and saved; None = the run ended at once.
    """

    def __init__(self, number: int = signal.SIGINT, step: int | None = None) -> None:
        after = "" if step is None else f" after step {step}"
        super().__init__(f"interrupted{after} by {signal.Signals(number).name}")
        self.signal, self.step = number, step

    @property
    def exit_code(self) -> int:
        """The exit code of a process that the signal ended."""
        return 128 + self.signal


@contextlib.contextmanager
def ends_at_once(connected: bool = False) -> Iterator[None]:
    """A signal raises ``Interrupted`` in the main thread.

    Args:
        connected: Whether this process has connections of paddle, whose calls a signal must not interrupt.
    """

    def handler(number: int, frame: Any) -> None:
        raise Interrupted(number)

    with handled(handler, goes_on=connected):
        yield


@contextlib.contextmanager
def ends_later(connected: bool = False) -> Iterator[Callable[[], int]]:
    """A signal is only noted; another one raises ``Interrupted``.

    In a process of our launcher further signals do nothing: a cluster may send the first to all processes, and the launcher hands
    it on; at a second one the launcher ends its processes.

    Args:
        connected: As for ``ends_at_once``.

    Yields:
        A function that gives the number of the signal, 0 if there was none.
    """
    noted: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if noted and LAUNCHER not in os.environ:
            raise Interrupted(number)
        noted.append(number)

    with handled(handler, goes_on=connected):
        yield lambda: noted[0] if noted else 0

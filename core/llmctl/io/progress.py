"""Says on standard error how far something is that takes long; nothing about what ends soon."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds without a word."""
REDRAW, LINE = 0.5, 10.0
"""Seconds between two words: on a terminal, where a line is redrawn, and elsewhere."""

_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


@contextlib.contextmanager
def silent(active: bool = True) -> Iterator[None]:
    """Within the block, nothing is said of any progress.

    Args:
        active: Whether this is so.
    """
    token = _SILENT.set(active or _SILENT.get())
    try:
        yield
    finally:
        _SILENT.reset(token)


def note(text: str) -> None:
    """Says at once what takes long from now on, a line on standard error.

    Args:
        text: The line.
    """
    if not _SILENT.get():
        print(text, file=sys.stderr, flush=True)


def can_redraw() -> bool:
    """Whether standard error is a terminal on which a line can be redrawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def waiting(title: str) -> Iterator[None]:
    """Says what is being done, once, if the block takes long and its progress is not known; longest where nothing is redrawn.

    Args:
        title: What is being done.
    """
    redraws, stream, shown = can_redraw(), sys.stderr, threading.Event()

    def say() -> None:
        shown.set()
        print(f"{title} ...", end="" if redraws else "\n", file=stream, flush=True)

    timer = threading.Timer(PATIENCE if redraws else LINE, say)
    timer.daemon = True
    if not _SILENT.get():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if shown.is_set() and redraws:
            print("\r\x1b[K", end="", file=stream, flush=True)


def tracked(parts: Iterable[T], title: str, total: int) -> Iterator[T]:
    """The parts, one by one, with their progress.

    Args:
        parts: What is being done.
        title: As for ``Progress``.
        total: Number of parts; 0 = not known.
    """
    with Progress(title, total) as progress:
        for part in parts:
            yield part
            progress(1)


class Progress:
    """A line with the share that is done, redrawn on a terminal; lines where none can be redrawn.

    Args:
        title: What is being done.
        total: Amount of all that is to be done, in any unit; 0 = not known.
    """

    def __init__(self, title: str, total: float = 0) -> None:
        self._title, self._total, self._quiet = title, total, _SILENT.get()
        self._redraws = can_redraw()
        self._began = time.monotonic()
        self._next, self._done, self._shown = self._began + PATIENCE, 0.0, False

    def __call__(self, amount: float) -> None:
        """So much more is done."""
        self._done += amount
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next, self._shown = now + (REDRAW if self._redraws else LINE), True
        text = self._text(now - self._began)
        print(
            f"\r\x1b[K{text}" if self._redraws else text, end="" if self._redraws else "\n", file=sys.stderr, flush=True
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._redraws:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _text(self, seconds: float) -> str:
        if not self._total:
            return f"{self._title}: {self._done:,.0f} in {seconds:.0f} s"
        share = min(self._done / self._total, 1.0)
        left = seconds * (1 - share) / share if share else 0.0
        return f"{self._title}: {share:.0%}, {left:.0f} s left"

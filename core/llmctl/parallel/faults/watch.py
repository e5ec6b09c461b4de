"""Who waits for whom: once a rank has waited long in a collective operation, rank 0 prints where every rank is. Nothing here imports paddle.

A thread of each rank, with a connection to the common store of its own, sees when an operation takes too long, and says so in the
store; then all of them say what their rank waits in and which code it is at.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.io.json_object import parse_json
from llmctl.parallel.rank import PeerLost

POLL, PATIENCE = 0.25, 2.0
"""Seconds between two looks, and until a rank that does not say where it is counts as mute."""

AFTER = 5.0
"""Seconds from the failure of another rank until a wait for it is given up: on CPUs it breaks, on GPUs it need not."""

HANGS = "llmctl/hangs"
"""Key of the store: how often a rank said that an operation takes too long."""

ROOT = Path(__file__).parents[3]
"""Files under here are named from here."""


@dataclass
class Wait:
    """What the main thread of this process waits in.

    Attributes:
        what: The operation; empty = none.
        since: When it began, as ``time.monotonic``; infinite = it may take any time.
        ended: How many have ended.
    """

    what: str = ""
    since: float = math.inf
    ended: int = 0


WAIT = Wait()


@contextlib.contextmanager
def waiting(what: str, unlimited: bool = False) -> Iterator[None]:
    """Inside of the block this process waits in an operation with other ranks; an operation inside of it has the name of the outer one.

    Args:
        what: Its name, such as ``all_reduce no. 17 over tensor``.
        unlimited: Whether it may take any time.
    """
    if WAIT.what:
        yield
        return
    WAIT.what, WAIT.since = what, math.inf if unlimited else time.monotonic()
    try:
        yield
    finally:
        WAIT.what, WAIT.ended = "", WAIT.ended + 1


def start(
    connect: Callable[[], Any],
    number: int,
    size: int,
    seconds: float,
    tell: Callable[[str], object] = lambda text: print(text, file=sys.stderr, flush=True),
    look: Callable[[Any], PeerLost | None] = lambda store: None,
    end: Callable[[PeerLost], object] = lambda error: None,
) -> None:
    """Watches from now on.

    Args:
        connect: Opens a connection to the store.
        number: The rank.
        size: Number of ranks.
        seconds: An operation that takes longer hangs.
        tell: Called on rank 0 with the report.
        look: Gives, from the store, the failure of another rank.
        end: Called with it to end this process, which still waits some time later.
    """

    def watch() -> None:
        # The store ends with rank 0.
        with contextlib.suppress(Exception):
            _Watch(connect(), number, size, seconds, threading.main_thread().ident or 0, tell, look, end).run()

    threading.Thread(target=watch, name="watch", daemon=True).start()


class _Watch:
    def __init__(
        self,
        store: Any,
        number: int,
        size: int,
        seconds: float,
        thread: int,
        tell: Callable[[str], object],
        look: Callable[[Any], PeerLost | None],
        end: Callable[[PeerLost], object],
    ) -> None:
        self._store, self._number, self._size, self._seconds = store, number, size, seconds
        self._thread, self._tell, self._look, self._end = thread, tell, look, end
        self._round = store.add(HANGS, 0)

    def run(self) -> None:
        said, failed_at = -1, math.inf
        while True:
            time.sleep(POLL)
            if lost := self._look(self._store):
                failed_at = min(failed_at, time.monotonic())
                if WAIT.what and time.monotonic() - failed_at > AFTER:
                    self._end(lost)
            if WAIT.what and WAIT.ended != said and time.monotonic() - WAIT.since > self._seconds:
                said = WAIT.ended
                self._store.add(HANGS, 1)
            hangs = self._store.add(HANGS, 0)
            if hangs != self._round:
                self._round = hangs
                self._say()

    def _say(self) -> None:
        """Puts where this rank is into the store; rank 0 prints where all are."""
        # Ranks begin to wait one after the other: all of them answer the same, latest round.
        time.sleep(PATIENCE / 4)
        self._round = self._store.add(HANGS, 0)
        own = {"wait": WAIT.what, "where": _where(self._thread)}
        self._store.set(self._key(self._number), json.dumps(own).encode())
        self._store.add(f"{self._key(self._number)}/said", 1)
        if self._number == 0:
            self._tell(report([self._state(rank) for rank in range(self._size)], self._seconds))

    def _state(self, rank: int) -> Mapping[str, str] | None:
        """What a rank said; None = nothing."""
        end = time.monotonic() + PATIENCE
        while not self._store.add(f"{self._key(rank)}/said", 0):
            if time.monotonic() > end:
                return None
            time.sleep(POLL / 5)
        state: Mapping[str, str] = parse_json(bytes(self._store.get(self._key(rank))))
        return state

    def _key(self, rank: int) -> str:
        return f"llmctl/hang/{self._round}/{rank}"


def _where(thread: int) -> str:
    """The code that a thread is at, the innermost call first."""
    frame = sys._current_frames().get(thread)
    calls = reversed(traceback.extract_stack(frame)[-3:]) if frame else ()
    return ", called from ".join(f"{_short(call.filename)}:{call.lineno}" for call in calls)


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "/".join(path.parts[-2:])


def report(states: Sequence[Mapping[str, str] | None], seconds: float) -> str:
    """Lines on where all ranks are: those that wait in the same operation together, then those that are elsewhere.

    Args:
        states: Of every rank: ``wait``, empty if it waits in nothing, and ``where``; None = it said nothing.
        seconds: How long one has waited.
    """
    waits: dict[str, list[int]] = {}
    for rank, state in enumerate(states):
        if state and state["wait"]:
            waits.setdefault(state["wait"], []).append(rank)
    lines = [f"{_ranks(ranks, 'wait')} in {what}" for what, ranks in waits.items()]
    lines += [f"rank {n} is at {state['where']}" for n, state in enumerate(states) if state and not state["wait"]]
    mute = [rank for rank, state in enumerate(states) if state is None]
    lines += [f"{_ranks(mute, 'do')} not answer"] if mute else []
    return "\n  ".join((f"hang: a rank has waited for {seconds:g} s", *lines))


def _ranks(numbers: Sequence[int], verb: str) -> str:
    one = len(numbers) == 1
    shown = ", ".join(map(str, numbers))
    return f"rank{'' if one else 's'} {shown} {verb}{('es' if verb == 'do' else 's') if one else ''}"

"""Between the event loop and the engine: requests go in without waiting, events come back once per step.

Nothing else here touches the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from llmctl.errors import LlmctlError
from llmctl.infer.backend import Backend, BatchBackend, EngineBackend
from llmctl.infer.request import Event, Generation, Request
from llmctl.serve.problems import Problem

T = TypeVar("T")
STALLED_SECONDS = 120.0
"""An engine that has work and takes longer for a step than this counts as failed."""

RESTARTS = 2
"""How many steps one after another may fail before the engine counts as failed."""

DOWN = "the engine has stopped; the server must be started again"

Numbered = tuple[int, Event]
"""An event and the number of its answer among those of a stream."""


class Stream:
    """The events of some answers, for one task of the event loop.

    Attributes:
        cancelled: Numbers of answers that nobody waits for.
    """

    def __init__(self) -> None:
        self._events: list[Numbered | Problem] = []
        self._waiter: asyncio.Future[None] | None = None
        self._open: dict[int, Callable[[], None]] = {}
        self.cancelled: set[int] = set()

    def put(self, event: Numbered | Problem) -> None:
        """Takes an event, in the event loop."""
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def opened(self, number: int, cancel: Callable[[], None]) -> None:
        """An answer was asked for, which this ends."""
        self._open[number] = cancel

    async def bundle(self) -> list[Numbered]:
        """The next events, those of a step together.

        Raises:
            Problem: The engine has stopped, the server is stopping, or there is no time left.
        """
        if not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        events, self._events = self._events, []
        found: list[Numbered] = []
        for event in events:
            if isinstance(event, Problem):
                raise event
            if event[1].done is not None:
                self._open.pop(event[0], None)
            found.append(event)
        return found

    def cancel(self, number: int) -> None:
        """Ends an answer, if it has not ended."""
        cancel = self._open.pop(number, None)
        if cancel is not None:
            self.cancelled.add(number)
            cancel()

    def close(self) -> None:
        """Ends all answers."""
        for number in [*self._open]:
            self.cancel(number)


class Bridge(Protocol):
    """An engine for the event loop."""

    def start(self) -> None:
        """Begins, in the event loop."""

    def submit(self, request: Request, stream: Stream, number: int) -> None:
        """Asks for an answer; returns at once.

        Args:
            request: What to answer.
            stream: Gets its events.
            number: Its number in the stream.

        Raises:
            LlmctlError: It can never be answered.
            Problem: The engine has stopped.
        """

    @property
    def alive(self) -> bool:
        """Whether the engine takes requests and progresses."""

    @property
    def dead(self) -> bool:
        """Whether the engine has ended by an error."""

    def between_steps(self, call: Callable[[Any], T]) -> T:
        """The result of a function that is called with the engine between two steps; not for the event loop.

        Raises:
            Problem: The engine has stopped, or cannot be reached so.
        """

    def gauges(self) -> dict[str, float]:
        """State of the engine, by name of the metric."""

    def stop(self) -> None:
        """Ends the engine."""


class EngineBridge:
    """The fused engine, which runs in a thread.

    Args:
        backend: The engine.
        draft: Draft tokens of a step.
    """

    def __init__(self, backend: EngineBackend, draft: int = 0) -> None:
        self._backend, self._draft = backend, draft
        self._pending: list[tuple[Stream, Numbered | Problem]] = []
        self._engine: Any = None
        self._moved = 0.0

    def start(self) -> None:
        """As ``Bridge``."""
        from llmctl.infer.engine.async_engine import AsyncEngine

        self._loop = asyncio.get_running_loop()
        self._engine = AsyncEngine(self._backend.engine, self._after_step, RESTARTS)

    def submit(self, request: Request, stream: Stream, number: int) -> None:
        """As ``Bridge``."""
        from llmctl.infer.engine.async_engine import StoppedError

        adapter = self._backend.adapter if request.adapter < 0 else request.adapter
        draft = 0 if request.score_from is not None else self._draft
        try:
            ticket = self._engine.submit(replace(request, adapter=adapter, draft=draft), _Sink(self, stream, number))
        except StoppedError:
            raise Problem(DOWN, 503) from None
        if not self._backend.engine.busy:
            self._moved = time.monotonic()
        ticket.number.add_done_callback(lambda future: self._refused(future, stream, number))
        stream.opened(number, lambda: self._engine.cancel(ticket))

    @property
    def alive(self) -> bool:
        """As ``Bridge``."""
        if self._engine is None or self.dead:
            return False
        return not self._backend.engine.busy or time.monotonic() - self._moved < STALLED_SECONDS

    @property
    def dead(self) -> bool:
        """As ``Bridge``."""
        return self._engine is not None and not self._engine.alive

    def between_steps(self, call: Callable[[Any], T]) -> T:
        """As ``Bridge``."""
        from llmctl.infer.engine.async_engine import StoppedError

        try:
            found: Future[T] = self._engine.between_steps(call)
        except StoppedError:
            raise Problem(DOWN, 503) from None
        return found.result()

    def gauges(self) -> dict[str, float]:
        """As ``Bridge``."""
        state = self._backend.engine.statistics()
        return {
            "engine_running": state.running, "engine_waiting": state.waiting,
            "kv_cache_usage_ratio": state.used_blocks / max(1, state.blocks), "engine_steps_total": state.steps,
            "engine_computed_tokens_total": state.computed_tokens, "engine_preemptions_total": state.preemptions,
            "engine_restarts_total": state.restarts,
        }  # fmt: skip

    def stop(self) -> None:
        """As ``Bridge``."""
        if self._engine is not None:
            self._engine.stop()

    def take(self, stream: Stream, event: Numbered | Problem) -> None:
        """Keeps an event until the step ends; in the engine's thread."""
        self._pending.append((stream, event))

    def _refused(self, number_of: Future[int], stream: Stream, number: int) -> None:
        """Passes on why the engine refused what had passed the check; in the engine's thread."""
        error = number_of.exception()
        if isinstance(error, Exception) and not isinstance(error, RuntimeError):
            self.take(stream, (number, Event(0, done=Generation([], "error", str(error), cause=error))))

    def _after_step(self) -> None:
        self._moved = time.monotonic()
        pending, self._pending = self._pending, []
        if pending and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_hand_out, pending)


class _Sink:
    """Takes the events of an answer, in the engine's thread."""

    def __init__(self, bridge: EngineBridge, stream: Stream, number: int) -> None:
        self._bridge, self._stream, self._number = bridge, stream, number

    def put(self, event: Any) -> None:
        """Takes an event, or the error that the engine ended with."""
        good = isinstance(event, Event)
        self._bridge.take(self._stream, (self._number, event) if good else Problem(DOWN, 503))


def _hand_out(pending: list[tuple[Stream, Numbered | Problem]]) -> None:
    for stream, event in pending:
        stream.put(event)


class BatchBridge:
    """A layer or an exported program, which computes one request at a time, in a thread.

    Args:
        backend: The model.
    """

    def __init__(self, backend: BatchBackend) -> None:
        self._backend = backend
        self._thread = ThreadPoolExecutor(1, "llmctl-engine")
        self._waiting = 0

    def start(self) -> None:
        """As ``Bridge``."""
        self._loop = asyncio.get_running_loop()

    def submit(self, request: Request, stream: Stream, number: int) -> None:
        """As ``Bridge``."""
        self._waiting += 1
        stream.opened(number, lambda: None)
        self._thread.submit(self._compute, request, stream, number)

    @property
    def alive(self) -> bool:
        """As ``Bridge``."""
        return True

    @property
    def dead(self) -> bool:
        """As ``Bridge``."""
        return False

    def between_steps(self, call: Callable[[Any], T]) -> T:
        """As ``Bridge``."""
        raise Problem("the engine of this model does not change while it runs")

    def gauges(self) -> dict[str, float]:
        """As ``Bridge``."""
        return {"engine_running": min(1, self._waiting), "engine_waiting": max(0, self._waiting - 1)}

    def stop(self) -> None:
        """As ``Bridge``."""
        self._thread.shutdown(cancel_futures=True)

    def _compute(self, request: Request, stream: Stream, number: int) -> None:
        def on_event(event: Event) -> bool:
            self._tell(stream, (number, event))
            return number in stream.cancelled

        try:
            for _, made in (
                [] if number in stream.cancelled else self._backend.run([replace(request, on_event=on_event)])
            ):
                self._tell(stream, (number, Event(0, done=made)))
        except Exception as error:  # of this request only
            cause = error if isinstance(error, LlmctlError) else None
            failed = Generation([], "error", f"{type(error).__name__}: {error}", cause=cause)
            self._tell(stream, (number, Event(0, done=failed)))
        finally:
            self._waiting -= 1

    def _tell(self, stream: Stream, event: Numbered) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(stream.put, event)


def bridge_of(backend: Backend, draft: int = 0) -> Bridge:
    """The bridge to a loaded engine.

    Args:
        backend: The engine.
        draft: Draft tokens of a step (fused).
    """
    if isinstance(backend, EngineBackend):
        return EngineBridge(backend, draft)
    assert isinstance(backend, BatchBackend)
    return BatchBridge(backend)

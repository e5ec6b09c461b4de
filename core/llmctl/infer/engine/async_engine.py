"""Runs the engine in a background thread for many callers.

A step that fails ends the requests that ran, and the engine begins anew with those that wait, as often as it may. Then, every
waiting request gets the exception.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any, Protocol, TypeVar

from llmctl.infer.engine.engine import Engine, EngineStats
from llmctl.infer.request import Event, Generation, Request

T = TypeVar("T")
LOG = logging.getLogger("llmctl.serve")


class StoppedError(RuntimeError):
    """The engine was stopped or failed; ``__cause__`` is the error that it failed with."""


Events = queue.SimpleQueue["Event | StoppedError"]


class Sink(Protocol):
    """Takes the events of a request, in the engine's thread; must not wait."""

    def put(self, event: Event | StoppedError, /) -> Any:
        """Takes an event."""


class Ticket:
    """A submitted request and the queue of its events. Only one thread may read them.

    Args:
        sink: Where its events go, which several tickets may share; None = a new queue.

    Attributes:
        number: The request's id in the engine, or the error why it was refused; set when the engine has seen the request.
        events: The queue; empty if the events go to another sink.
        sink: Where its events go.
    """

    def __init__(self, sink: Sink | None = None) -> None:
        self.number: Future[int] = Future()
        self.events: Events = queue.SimpleQueue()
        self.sink: Sink = self.events if sink is None else sink

    def __iter__(self) -> Iterator[Event]:
        """Events up to the end.

        Raises:
            StoppedError: The engine stopped before.
        """
        while True:
            event = self.events.get()
            if isinstance(event, StoppedError):
                raise event
            yield event
            if event.done:
                return

    def result(self) -> Generation:
        """The whole answer.

        Raises:
            StoppedError: The engine stopped before.
        """
        return next(event.done for event in self if event.done)


class AsyncEngine:
    """Runs an engine until it is stopped.

    Args:
        engine: Nobody else may use it.
        after_step: Called in the engine's thread when the events of a step were handed out; must not wait.
        restarts: How many steps one after another may fail.
    """

    def __init__(self, engine: Engine, after_step: Callable[[], None] | None = None, restarts: int = 0) -> None:
        self._engine, self._after_step = engine, after_step or (lambda: None)
        self._wake = threading.Condition()
        self._asked: list[tuple[Request, Ticket]] = []
        self._cancelled: list[Ticket] = []
        self._calls: list[Callable[[], None]] = []
        self._tickets: dict[int, Ticket] = {}
        self._stopped: StoppedError | None = None
        self._failures, self._restarts = 0, restarts
        self._thread = threading.Thread(target=self._run, name="llmctl-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink | None = None) -> Ticket:
        """Checks a request and returns its ticket at once; the engine sees it before the next step.

        Args:
            request: The request.
            sink: Where its events go; None = a new queue.

        Raises:
            ConfigError: The request can never be answered, such as a prompt longer than the KV cache.
            DataError: The prompt lacks the tokens that delimit a bidirectional prefix.
            StoppedError: The engine does not run.
        """
        self._engine.check(request)
        ticket = Ticket(sink)
        self._ask([(request, ticket)])
        return ticket

    def submit_all(self, requests: Sequence[Request], events: Events | None = None) -> list[Ticket]:
        """Adds several requests between the same two steps, and returns their tickets when the engine has seen all.

        For a refused request, ``ticket.number.result()`` raises the reason.

        Args:
            requests: The requests.
            events: A common queue for their events; None = a queue for each.

        Raises:
            StoppedError: The engine does not run.
        """
        tickets = [Ticket(events) for _ in requests]
        self._ask(list(zip(requests, tickets, strict=True)))
        wait([ticket.number for ticket in tickets])
        return tickets

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request, which gets the finish reason ``cancelled``. Nothing happens if it has ended."""
        with self._wake:
            self._cancelled.append(ticket)
            self._wake.notify()

    def between_steps(self, call: Callable[[Engine], T]) -> Future[T]:
        """Calls a function with the engine, in its thread and between two steps.

        Returns:
            The result, or the exception that was raised.

        Raises:
            StoppedError: The engine does not run.
        """
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(call(self._engine))
            except Exception as error:  # of the caller, who gets it
                result.set_exception(error)

        with self._wake:
            if self._stopped:
                raise self._error()
            self._calls.append(run)
            self._wake.notify()
        return result

    def stop(self) -> None:
        """Ends the thread after the current step. Requests that have not ended get ``StoppedError``."""
        with self._wake:
            self._stopped = self._stopped or StoppedError("the engine was stopped")
            self._wake.notify()
        self._thread.join()

    def statistics(self) -> EngineStats:
        """State and counters, between two steps or during one."""
        return self._engine.statistics()

    @property
    def alive(self) -> bool:
        """Whether the engine accepts requests."""
        return self._stopped is None

    def _run(self) -> None:
        cause: BaseException | None = None
        try:
            while self._take():
                for event in self._step():
                    self._hand_out(event)
                self._after_step()
        except BaseException as error:
            # What this thread raises would be lost; the waiting callers raise it instead.
            cause = error
        with self._wake:
            if cause is not None:
                self._stopped = StoppedError(f"the engine died: {type(cause).__name__}: {cause}")
                self._stopped.__cause__ = cause
            waiting = [*self._tickets.values(), *(ticket for _, ticket in self._asked)]
        for ticket in waiting:
            if not ticket.number.done():
                ticket.number.set_exception(self._error())
            ticket.sink.put(self._error())
        self._after_step()

    def _step(self) -> list[Event]:
        """The events of a step, or of a new beginning after one that failed."""
        try:
            events = self._engine.step()
        except Exception as error:
            self._failures += 1
            if self._failures > self._restarts:
                raise
            LOG.error("a step of the engine failed and it begins anew: %s", type(error).__name__)
            return self._engine.restart(error)
        self._failures = 0
        return events

    def _ask(self, asked: list[tuple[Request, Ticket]]) -> None:
        with self._wake:
            if self._stopped:
                raise self._error()
            self._asked += asked
            self._wake.notify()

    def _take(self) -> bool:
        """Waits for work and takes new requests and cancellations; False = the engine was stopped."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._asked or self._cancelled or self._calls or self._stopped or self._engine.busy
            )
            if self._stopped:
                return False
            asked, cancelled, calls = self._asked, self._cancelled, self._calls
            self._asked, self._cancelled, self._calls = [], [], []
        for request, ticket in asked:
            try:
                number = self._engine.add(request)
            except Exception as error:
                # A bad request must not stop the engine for others.
                ticket.number.set_exception(error)
                continue
            self._tickets[number] = ticket
            ticket.number.set_result(number)
        for ticket in cancelled:
            # Requests are taken before cancellations, so every number is known or refused.
            if ticket.number.exception() is None:
                self._engine.cancel(ticket.number.result())
        for run in calls:
            run()
        return True

    def _hand_out(self, event: Event) -> None:
        ticket = self._tickets.pop(event.id) if event.done else self._tickets[event.id]
        ticket.sink.put(event)

    def _error(self) -> StoppedError:
        """A new exception for each waiting caller, so that their tracebacks do not mix."""
        assert self._stopped
        error = StoppedError(str(self._stopped))
        error.__cause__ = self._stopped.__cause__
        return error

"""An engine in a thread of its own, for many threads that ask. When it dies, everyone who waits learns the cause."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future

from llmctl.infer.engine.engine import Engine, Statistics
from llmctl.infer.request import Event, Generation, Request


class StoppedError(RuntimeError):
    """The engine does not run any more; its cause says why, if it died."""


class Ticket:
    """Events of a request, as they happen, for one reader."""

    def __init__(self) -> None:
        self.number: Future[int] = Future()
        self.events: queue.SimpleQueue[Event | StoppedError] = queue.SimpleQueue()

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


class Worker:
    """Runs an engine until it is stopped.

    Args:
        engine: Nobody else may use it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = threading.Condition()
        self._asked: list[tuple[Request, Ticket]] = []
        self._cancelled: list[int] = []
        self._tickets: dict[int, Ticket] = {}
        self._stopped: StoppedError | None = None
        self._thread = threading.Thread(target=self._run, name="llmctl-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """Events of a request; returns when the engine has taken it.

        Raises:
            ConfigError: It can never be answered.
            DataError: The prompt lacks tokens that mark a context.
            StoppedError: The engine does not run.
        """
        ticket = Ticket()
        with self._wake:
            if self._stopped:
                raise self._error()
            self._asked.append((request, ticket))
            self._wake.notify()
        ticket.number.result()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request; its ticket tells so. Nothing happens if it has ended."""
        with self._wake:
            self._cancelled.append(ticket.number.result())
            self._wake.notify()

    def stop(self) -> None:
        """Ends the thread after the step that it is in. Who waits gets ``StoppedError``."""
        with self._wake:
            self._stopped = self._stopped or StoppedError("the engine was stopped")
            self._wake.notify()
        self._thread.join()

    def statistics(self) -> Statistics:
        """State and sums, between two steps or during one."""
        return self._engine.statistics()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._stopped is None

    def _run(self) -> None:
        cause: BaseException | None = None
        try:
            while self._take():
                for event in self._engine.step():
                    self._hand_out(event)
        except BaseException as error:
            # Nobody would see what this thread raises; whoever waits does.
            cause = error
        with self._wake:
            if cause is not None:
                self._stopped = StoppedError(f"the engine died: {type(cause).__name__}: {cause}")
                self._stopped.__cause__ = cause
            waiting = [*self._tickets.values(), *(ticket for _, ticket in self._asked)]
        for ticket in waiting:
            if not ticket.number.done():
                ticket.number.set_exception(self._error())
            ticket.events.put(self._error())

    def _take(self) -> bool:
        """Waits for work and takes what was asked for; False = the engine was stopped."""
        with self._wake:
            self._wake.wait_for(lambda: self._asked or self._cancelled or self._stopped or self._engine.busy)
            if self._stopped:
                return False
            asked, cancelled = self._asked, self._cancelled
            self._asked, self._cancelled = [], []
        for request, ticket in asked:
            try:
                number = self._engine.add(request)
            except Exception as error:
                # Whatever is wrong with a request concerns whoever asked.
                ticket.number.set_exception(error)
                continue
            self._tickets[number] = ticket
            ticket.number.set_result(number)
        for number in cancelled:
            self._engine.cancel(number)
        return True

    def _hand_out(self, event: Event) -> None:
        ticket = self._tickets.pop(event.id) if event.done else self._tickets[event.id]
        ticket.events.put(event)

    def _error(self) -> StoppedError:
        """One for each who waits, so that their tracebacks do not mix."""
        assert self._stopped
        error = StoppedError(str(self._stopped))
        error.__cause__ = self._stopped.__cause__
        return error

"""Backends, which answer requests: a layer or program batch by batch, or the fused engine with continuous batching."""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Protocol

from llmctl.errors import LlmctlError, UnsupportedError
from llmctl.infer.request import Event, Generation, Request

if TYPE_CHECKING:
    from llmctl.infer.engine.async_engine import AsyncEngine, Events, Ticket
    from llmctl.infer.engine.engine import Engine


class Backend(Protocol):
    """Answers requests."""

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """Each request's index among those given and its answer, in the order in which answers end.

        A request that fails has the finish reason ``error`` and, where it was refused, the ``LlmctlError`` as ``cause``; the
        others are answered. Closing the iterator cancels what has not ended.
        """

    def stream(self, request: Request) -> Iterator[Event]:
        """The events of one request as they happen, up to its end. Closing the iterator cancels it.

        Raises:
            LlmctlError: The request was refused; it may also be the ``cause`` in the last event.
        """

    def close(self) -> None:
        """Ends what runs in the background."""


class BatchBackend:
    """A model that answers requests in batches, in order. Several threads may use it: it computes a batch at a time.

    Args:
        model: As for ``generate.generate``.
        end_ids: Tokens that end an answer.
        pad_id: Fills rows on the left.
        size: Maximum number of requests of a batch.
        use_cache: False computes every step from the beginning.
    """

    def __init__(
        self, model: Any, end_ids: Collection[int], pad_id: int, size: int = 8, use_cache: bool = True
    ) -> None:
        self.model, self.size = model, size
        self._fixed = end_ids, pad_id, use_cache
        # Held while a batch is computed, never while the caller has the iterator.
        self._computing = threading.Lock()

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """As ``Backend``, in the order of the requests."""
        left, index = iter(requests), 0
        while window := list(islice(left, self.size)):
            for _, alike in groupby(window, lambda request: (request.options, request.score_from is None)):
                with self._computing:
                    answers = self._batch(list(alike))
                for answer in answers:
                    yield index, answer
                    index += 1

    def stream(self, request: Request) -> Iterator[Event]:
        """As ``Backend``; the answer is computed in a thread."""
        events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        cancelled = threading.Event()

        def on_event(event: Event) -> bool:
            events.put(event)
            return cancelled.is_set()

        def compute() -> None:
            try:
                for _, made in self.run([replace(request, on_event=on_event)]):
                    events.put(Event(0, done=made))
            except BaseException as error:
                events.put(error)

        threading.Thread(target=compute, name="llmctl-stream").start()
        try:
            done = False
            while not done:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                done = event.done is not None
                yield event
        finally:
            cancelled.set()

    def close(self) -> None:
        """As ``Backend``."""

    def _batch(self, batch: list[Request]) -> list[Generation]:
        """The answers of requests with equal options; where they cannot be computed together, one by one."""
        emitted = False

        def on_token(index: int, token: int) -> bool:
            nonlocal emitted
            emitted = True
            on_event = batch[index].on_event
            return bool(on_event and on_event(Event(index, token)))

        try:
            return self._compute(batch, on_token)
        except LlmctlError as error:
            if emitted:
                raise
            if len(batch) == 1:
                return [Generation([], "error", str(error), cause=error)]
        return [answer for request in batch for answer in self._batch([request])]

    def _compute(self, batch: list[Request], on_token: Any) -> list[Generation]:
        from llmctl.infer.eager.generate import generate
        from llmctl.infer.eager.score import score

        end_ids, pad_id, use_cache = self._fixed
        if batch[0].score_from is not None:
            return [score(self.model, one.prompt, one.score_from or 1, one.on_logits) for one in batch]
        for name, given in (("logit_bias", batch[0].options.logit_bias), ("a constraint", batch[0].constraint)):
            if given:
                raise UnsupportedError(f"{name} needs the fused engine; leave it out, or use engine='fused'")
        prompts, draws = [request.prompt for request in batch], [request.index for request in batch]
        return generate(self.model, prompts, batch[0].options, end_ids, pad_id, on_token, use_cache, draws)


class EngineBackend:
    """The fused engine, which is handed requests as earlier ones end. For one thread.

    Args:
        engine: The engine.
        ahead: Maximum number of requests that the engine holds, running or waiting.
        adapter: Index of the adapter of requests that name none; -1 = none.
    """

    def __init__(self, engine: Engine, ahead: int = 128, adapter: int = -1) -> None:
        self.engine, self.ahead, self.adapter = engine, ahead, adapter

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """As ``Backend``."""
        left = enumerate(_adapted(request, self.adapter) for request in requests)
        indices: dict[int, int] = {}
        try:
            while True:
                while len(indices) < self.ahead and (asked := next(left, None)):
                    index, request = asked
                    try:
                        indices[self.engine.add(request)] = index
                    except LlmctlError as error:
                        yield index, Generation([], "error", str(error), cause=error)
                if not indices:
                    return
                for event in self.engine.step():
                    if event.done and event.done.cause:
                        raise event.done.cause
                    if event.done and event.id in indices:
                        yield indices.pop(event.id), event.done
        finally:
            for number in indices:
                self.engine.cancel(number)

    def stream(self, request: Request) -> Iterator[Event]:
        """As ``Backend``."""
        number, done = self.engine.add(_adapted(request, self.adapter)), False
        try:
            while not done:
                for event in self.engine.step():
                    if event.id == number:
                        done = event.done is not None
                        yield event
        finally:
            self.engine.cancel(number)

    def close(self) -> None:
        """As ``Backend``."""


class AsyncBackend:
    """The fused engine in a background thread, for several threads.

    Args:
        engine: The engine.
        ahead: Maximum number of requests of one ``run`` that the engine holds, running or waiting.
        adapter: Index of the adapter of requests that name none; -1 = none.
    """

    def __init__(self, engine: AsyncEngine, ahead: int = 128, adapter: int = -1) -> None:
        self.engine, self.ahead, self.adapter = engine, ahead, adapter

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """As ``Backend``.

        Raises:
            StoppedError: The engine stopped before all requests had ended.
        """
        left = enumerate(_adapted(request, self.adapter) for request in requests)
        events: Events = queue.SimpleQueue()
        running: dict[int, tuple[int, Ticket]] = {}
        try:
            while True:
                # Handed over in bulk, since the engine takes requests only between two steps.
                if len(running) <= self.ahead // 2 and (asked := list(islice(left, self.ahead - len(running)))):
                    yield from self._submit(asked, events, running)
                    continue
                if not running:
                    return
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                if event.done:
                    if event.done.cause:
                        raise event.done.cause
                    yield running.pop(event.id)[0], event.done
        finally:
            for _, ticket in running.values():
                self.engine.cancel(ticket)

    def _submit(
        self, asked: list[tuple[int, Request]], events: Events, running: dict[int, tuple[int, Ticket]]
    ) -> Iterator[tuple[int, Generation]]:
        """Hands requests to the engine and notes them as running; index and reason of those that were refused."""
        tickets = self.engine.submit_all([request for _, request in asked], events)
        for (index, _), ticket in zip(asked, tickets, strict=True):
            try:
                running[ticket.number.result()] = index, ticket
            except LlmctlError as error:
                yield index, Generation([], "error", str(error), cause=error)

    def stream(self, request: Request) -> Iterator[Event]:
        """As ``Backend``.

        Raises:
            StoppedError: The engine stopped before the request had ended.
        """
        ticket = self.engine.submit(_adapted(request, self.adapter))
        try:
            yield from ticket
        finally:
            self.engine.cancel(ticket)

    def close(self) -> None:
        """As ``Backend``."""
        self.engine.stop()


def thread_safe(backend: Backend) -> Backend:
    """A backend that several threads may use at the same time; the given one may not be used any more."""
    if not isinstance(backend, EngineBackend):
        return backend
    from llmctl.infer.engine.async_engine import AsyncEngine

    return AsyncBackend(AsyncEngine(backend.engine), backend.ahead, backend.adapter)


def _adapted(request: Request, adapter: int) -> Request:
    """The request with an adapter, unless it names one or there is none."""
    return request if request.adapter >= 0 or adapter < 0 else replace(request, adapter=adapter)

"""Backends, which answer requests: a layer or program batch by batch, or the fused engine with continuous batching."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Protocol

from llmctl.errors import LlmctlError
from llmctl.infer.request import Event, Generation, Request

if TYPE_CHECKING:
    from llmctl.infer.engine.engine import Engine


class Backend(Protocol):
    """Answers requests."""

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """Each request's index among those given and its answer, in the order in which answers end.

        A request that fails has the finish reason ``error`` and, where it was refused, the ``LlmctlError`` as ``cause``; the
        others are answered. Closing the iterator cancels what has not ended.
        """


class BatchBackend:
    """A model that answers requests in batches, in order.

    Args:
        model: As for ``generate.generate``.
        end_ids: Tokens that end an answer.
        pad_id: Fills rows on the left.
        size: Most requests of a batch.
        use_cache: False computes every step from the beginning.
    """

    def __init__(
        self, model: Any, end_ids: Collection[int], pad_id: int, size: int = 8, use_cache: bool = True
    ) -> None:
        self.model, self.size = model, size
        self._fixed = end_ids, pad_id, use_cache

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """As ``Backend``, in the order of the requests."""
        left, index = iter(requests), 0
        while window := list(islice(left, self.size)):
            for _, alike in groupby(window, lambda request: request.options):
                for answer in self._batch(list(alike)):
                    yield index, answer
                    index += 1

    def _batch(self, batch: list[Request]) -> list[Generation]:
        """The answers of requests with equal options; where they cannot be computed together, one by one."""
        emitted = False

        def on_token(index: int, token: int) -> bool:
            nonlocal emitted
            emitted = True
            on_event = batch[index].on_event
            return bool(on_event and on_event(Event(index, token)))

        try:
            return self._generate(batch, on_token)
        except LlmctlError as error:
            if emitted:
                raise
            if len(batch) == 1:
                return [Generation([], "error", str(error), cause=error)]
        return [answer for request in batch for answer in self._batch([request])]

    def _generate(self, batch: list[Request], on_token: Any) -> list[Generation]:
        from llmctl.infer.eager.generate import generate

        end_ids, pad_id, use_cache = self._fixed
        prompts, draws = [request.prompt for request in batch], [request.index for request in batch]
        return generate(self.model, prompts, batch[0].options, end_ids, pad_id, on_token, use_cache, draws)


class EngineBackend:
    """The fused engine, which is handed requests as earlier ones end.

    Args:
        engine: The engine.
        ahead: Most requests that the engine holds, running or waiting.
        adapter: Index of the adapter of requests that name none; -1 = none.
    """

    def __init__(self, engine: Engine, ahead: int = 128, adapter: int = -1) -> None:
        self.engine, self.ahead, self.adapter = engine, ahead, adapter

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """As ``Backend``."""
        left = enumerate(self._adapted(request) for request in requests)
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

    def _adapted(self, request: Request) -> Request:
        return request if request.adapter >= 0 or self.adapter < 0 else replace(request, adapter=self.adapter)

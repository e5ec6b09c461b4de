"""Who answers requests: a model batch by batch, or the fused engine with continuous batching. Answers come as they end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from llmctl.errors import LlmctlError
from llmctl.infer.request import Event, Generation, Request

if TYPE_CHECKING:
    from llmctl.infer.engine.engine import Engine


class Runner(Protocol):
    """Answers requests."""

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """Each request's place among those given and its answer, in the order in which they end.

        A request that cannot be answered has the reason ``error``; the others are answered.
        """


class Batches:
    """A model that answers requests in batches, in order. All have the same options.

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
        """As ``Runner``."""
        left, place = iter(requests), 0
        while batch := list(islice(left, self.size)):
            for answer in self._batch(batch):
                yield place, answer
                place += 1

    def _batch(self, batch: list[Request]) -> list[Generation]:
        """The answers of a batch; where it cannot be answered together, one by one."""
        told = False

        def on_token(index: int, token: int) -> bool:
            nonlocal told
            told = True
            on_event = batch[index].on_event
            return bool(on_event and on_event(Event(index, token)))

        try:
            return self._generate(batch, on_token)
        except LlmctlError as error:
            if told:
                raise
            if len(batch) == 1:
                return [Generation([], "error", str(error))]
        return [answer for request in batch for answer in self._batch([request])]

    def _generate(self, batch: list[Request], on_token: Any) -> list[Generation]:
        from llmctl.infer.eager.generate import generate

        end_ids, pad_id, use_cache = self._fixed
        prompts, places = [request.prompt for request in batch], [request.index for request in batch]
        return generate(self.model, prompts, batch[0].options, end_ids, pad_id, on_token, use_cache, places)


class Continuous:
    """The fused engine, which is given as many requests at a time as it can have under way.

    Args:
        engine: The engine.
        ahead: Most requests that are under way or wait.
        adapter: Of requests that name none; -1 = none.
    """

    def __init__(self, engine: Engine, ahead: int = 128, adapter: int = -1) -> None:
        self.engine, self.ahead, self.adapter = engine, ahead, adapter

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """As ``Runner``."""
        left = enumerate(self._adapted(request) for request in requests)
        places: dict[int, int] = {}
        try:
            while True:
                while len(places) < self.ahead and (asked := next(left, None)):
                    try:
                        places[self.engine.add(asked[1])] = asked[0]
                    except LlmctlError as error:
                        yield asked[0], Generation([], "error", str(error))
                if not places:
                    return
                for event in self.engine.step():
                    if event.done and event.done.cause:
                        raise event.done.cause
                    if event.done and event.id in places:
                        yield places.pop(event.id), event.done
        finally:
            for number in places:
                self.engine.cancel(number)

    def _adapted(self, request: Request) -> Request:
        return request if request.adapter >= 0 or self.adapter < 0 else replace(request, adapter=self.adapter)

"""Answers jobs on the engine: admission, deadlines, and the end of answers that nobody waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from llmctl.errors import LlmctlError
from llmctl.infer.request import Request
from llmctl.infer.sampling import SamplingParams, TokenLogprob
from llmctl.infer.sampling.constraint import Constraint
from llmctl.serve.access.keys import ASKING
from llmctl.serve.admission import Admission
from llmctl.serve.answers.answer import Answer, Piece
from llmctl.serve.answers.parts import PartsReader
from llmctl.serve.bridge import Bridge, Numbered, Stream
from llmctl.serve.metrics import Metrics
from llmctl.serve.model import ServedModel
from llmctl.serve.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One answer that is asked for.

    Attributes:
        prompt: Token ids.
        params: How tokens are chosen.
        index: Its number among the answers of its prompt, for the random numbers.
        constraint: Its form; None = any.
        reader: Makes what finds thoughts and calls in it; None = all of it is said.
    """

    prompt: Sequence[int]
    params: SamplingParams
    index: int = 0
    constraint: Constraint | None = None
    reader: Callable[[], PartsReader] | None = None


@dataclass(kw_only=True)
class Job:
    """What a request asks for.

    Attributes:
        asks: The answers.
        adapter: Name of the adapter; empty = none.
        prompts: How many prompts there are; each has as many answers as the others.
        seconds: How long it may take; 0 = for ever.
        ends: As for ``Answer``.
        answers: The answers so far.
        started: When it began.
    """

    asks: list[Ask]
    adapter: str = ""
    prompts: int = 1
    seconds: float = 0.0
    ends: tuple[int, ...] = ()
    answers: list[Answer] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def usage(self) -> dict[str, object]:
        """Tokens of prompts, each counted once, and of all answers."""
        each = max(1, len(self.asks) // self.prompts)
        prompt = sum(len(ask.prompt) for ask in self.asks[::each])
        new = sum(answer.tokens for answer in self.answers)
        cached = sum(answer.cached for answer in self.answers[::each])
        return {
            "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip


class Service:
    """The model with its engine and its limits.

    Args:
        model: The model.
        bridge: Its engine.
        admission: How much may wait.
        metrics: Counts.
        seconds: Longest time of a request; 0 = any.

    Attributes:
        stopping: Whether new requests are refused.
    """

    def __init__(
        self, model: ServedModel, bridge: Bridge, admission: Admission, metrics: Metrics, seconds: float = 0.0
    ) -> None:
        self.model, self.bridge, self.admission, self.metrics = model, bridge, admission, metrics
        self.stopping = False
        self._seconds = seconds
        self._open: set[Stream] = set()

    def seconds(self, asked: float | None) -> float:
        """How long a request may take; 0 = for ever."""
        return min(asked, self._seconds or asked) if asked else self._seconds

    def check_open(self) -> None:
        """Passes when requests are answered.

        Raises:
            Problem: The server is stopping, or the engine has.
        """
        if self.stopping:
            raise Problem("the server is stopping", 503, code="stopping", headers={"retry-after": "10"})
        if not self.bridge.alive:
            raise Problem("the engine has stopped; the server must be started again", 503, code="engine_down")

    def abandon(self) -> None:
        """Ends every answer, with an error for who waits."""
        for stream in [*self._open]:
            stream.put(Problem("the server is stopping", 503, code="stopping"))

    async def pieces(self, job: Job) -> AsyncGenerator[list[tuple[int, Piece]], None]:
        """The pieces of a job's answers as they come, with their numbers; ending the iterator ends the answers.

        Raises:
            Problem: The server is busy, an answer can never be given, fails or takes too long.
        """
        job.answers = [
            Answer(self.model.tokenizer, ask.params, job.ends, ask.reader and ask.reader(), self.model.marks)
            for ask in job.asks
        ]
        requests = [
            _request(
                prompt=ask.prompt,
                options=ask.params,
                index=ask.index,
                adapter=self._place(job.adapter),
                constraint=ask.constraint,
            )
            for ask in job.asks
        ]
        async with self._asked(job, requests) as running:
            while not all(answer.closed for answer in job.answers):
                grown: dict[int, Piece] = {}
                for number, event in await running.bundle():
                    piece = job.answers[number].take(event)
                    if piece.finish:
                        running.stream.cancel(number)
                        self.metrics.count("answers_total", f'reason="{piece.finish}"')
                    if number in grown:
                        grown[number].add(piece)
                    else:
                        grown[number] = piece
                found = [(number, one) for number, one in grown.items() if one]
                if found:
                    yield found
        self._count(job)

    async def prompt_scores(self, job: Job, top: int, part: bool = False) -> list[list[TokenLogprob]]:
        """Log-probabilities of every prompt's tokens from the second on, with those of the likeliest.

        Args:
            job: What is asked for.
            top: Number of likeliest tokens.
            part: Whether answers to the same prompts follow.

        Raises:
            Problem: As for ``pieces``.
        """
        each = max(1, len(job.asks) // job.prompts)
        prompts = [ask.prompt for ask in job.asks[::each]]
        scores: list[list[TokenLogprob]] = [[] for _ in prompts]
        asked = [number for number, prompt in enumerate(prompts) if len(prompt) > 1]
        if not asked:
            return scores
        params = SamplingParams(logprobs=top)
        requests = [
            _request(prompt=prompts[number], options=params, adapter=self._place(job.adapter), score_from=1)
            for number in asked
        ]
        done = 0
        async with self._asked(job, requests, part) as running:
            while done < len(asked):
                for number, event in await running.bundle():
                    if event.done is None:
                        continue
                    if event.done.finish_reason == "error":
                        cause = event.done.cause
                        raise Problem(str(cause or event.done.error), 400 if cause else 500)
                    scores[asked[number]], done = event.done.logprobs, done + 1
        return scores

    def _place(self, adapter: str) -> int:
        """Where the engine has an adapter, which may have been unloaded since the body was read; -1 = none is asked for."""
        place = self.model.adapters.place(adapter) if adapter else -1
        if place is None:
            raise Problem(f"the adapter {adapter} was unloaded", 404, param="model", code="model_not_found")
        return place

    @asynccontextmanager
    async def _asked(self, job: Job, requests: Sequence[Request], part: bool = False) -> AsyncIterator[_Running]:
        """Requests that run until the end of the block; those of a part count as no request of their key."""
        self.check_open()
        allowance = ASKING.get().allowance
        allowance.enter(len(requests), not part)
        try:
            self.admission.enter(len(requests), sum(len(request.prompt) for request in requests))
        except Problem:
            allowance.leave(len(requests), 0)
            raise
        running = _Running(self, job, requests)
        timer = None
        if job.seconds:
            late = Problem(f"the request took longer than {job.seconds:g} seconds", 408, code="timeout")
            left = max(0.0, job.started + job.seconds - time.monotonic())
            timer = asyncio.get_running_loop().call_later(left, running.stream.put, late)
        self._open.add(running.stream)
        try:
            for number, request in enumerate(requests):
                try:
                    self.bridge.submit(request, running.stream, number)
                except LlmctlError as error:
                    raise Problem(str(error)) from None
            yield running
        finally:
            if timer is not None:
                timer.cancel()
            self._open.discard(running.stream)
            running.stream.close()
            self.admission.prompts_done(sum(running.waiting.values()))
            self.admission.leave(len(requests), time.monotonic() - job.started)
            allowance.leave(len(requests), 0 if part else int(str(job.usage()["total_tokens"])))

    def _count(self, job: Job) -> None:
        usage = job.usage()
        self.metrics.count("prompt_tokens_total", by=int(str(usage["prompt_tokens"])))
        self.metrics.count("generated_tokens_total", by=int(str(usage["completion_tokens"])))
        self.metrics.count("cached_tokens_total", by=sum(answer.cached for answer in job.answers))
        self.metrics.time("request_seconds", time.monotonic() - job.started)


class _Running:
    """Requests that run, and the tokens of those that have no first token yet."""

    def __init__(self, service: Service, job: Job, requests: Sequence[Request]) -> None:
        self._service, self._job, self.stream = service, job, Stream()
        self.waiting = {number: len(request.prompt) for number, request in enumerate(requests)}
        self._count, self._last = len(requests), time.monotonic()

    async def bundle(self) -> list[Numbered]:
        """The next events; see ``Stream.bundle``."""
        bundle = await self.stream.bundle()
        now = time.monotonic()
        if len(self.waiting) < self._count:
            self._service.metrics.time("inter_token_seconds", now - self._last)
        self._last = now
        for number, _ in bundle:
            tokens = self.waiting.pop(number, None)
            if tokens is not None:
                self._service.admission.prompts_done(tokens)
                self._service.metrics.time("time_to_first_token_seconds", time.monotonic() - self._job.started)
        return bundle


def _request(**fields: Any) -> Request:
    """A request of the engine.

    Raises:
        Problem: Its fields do not fit each other.
    """
    try:
        return Request(**fields)
    except LlmctlError as error:
        raise Problem(str(error)) from None

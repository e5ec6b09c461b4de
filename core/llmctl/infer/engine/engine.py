"""Continuous batching: requests join and leave between steps, each with options and draws of its own.

What a request is answered does not depend on what else is running. Which tokens a step computes is decided in
``scheduler``, where they lie in ``tables``, what a request makes of its logits in ``jobs``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.errors import ConfigError, LlmctlError
from llmctl.infer.engine.beam_search import Beams
from llmctl.infer.engine.block_manager import Row, Tables
from llmctl.infer.engine.build_batch import batch_of
from llmctl.infer.engine.limits import Limits, step_tokens_for
from llmctl.infer.engine.positions import Places
from llmctl.infer.engine.scheduler import Scheduler
from llmctl.infer.engine.scoring import Scoring
from llmctl.infer.engine.sequence import Answering, Found, Job, Part
from llmctl.infer.executors.base import Executor, Float
from llmctl.infer.request import Event, Generation, Request
from llmctl.infer.sampling.rows import FAULTS
from llmctl.infer.sampling.sampler import Sampler


@dataclass(frozen=True)
class Statistics:
    """State and sums of an engine.

    Attributes:
        running: Requests that have blocks.
        waiting: Requests that have none.
        blocks: Blocks of the cache.
        used: Blocks that somebody holds, virtual tokens' among them.
        held: Places in them that hold something.
        steps: Steps so far.
        computed: Tokens that went through the model so far.
        preempted: Times that a request gave up its blocks so far.
        guessed: Tokens that were guessed so far.
        accepted: Guesses that were right so far.
    """

    running: int
    waiting: int
    blocks: int
    used: int
    held: int
    steps: int
    computed: int
    preempted: int
    guessed: int
    accepted: int


class Engine:
    """Answers requests on an executor. Not for several threads at once: ``worker.Worker`` runs one for them.

    Args:
        executor: Computes steps.
        graph: The model that it computes.
        blocks: Blocks of the cache (``cache_size.blocks_for``).
        end_ids: Tokens that end an answer.
        prefix: Keys and values of virtual tokens before every sequence [layers, 2, P, K, H]; None = there are none.
        adapters: Number of adapters that requests may name.
        step_tokens: Most tokens of a step; a long prompt is computed over several steps. None = what the executor takes,
            or what is enough for the model (``limits.step_tokens_for``).
        most_rows: Most rows (answers, or beams of them) that run together.
        share: Whether equal beginnings of prompts share blocks.

    Raises:
        ConfigError: The numbers do not fit each other.
    """

    def __init__(
        self,
        executor: Executor,
        graph: DecoderSpec,
        *,
        blocks: int,
        end_ids: Collection[int] = (),
        prefix: Float | None = None,
        adapters: int = 0,
        step_tokens: int | None = None,
        most_rows: int = 64,
        share: bool = True,
    ) -> None:
        most = executor.max_tokens
        step_tokens = step_tokens or most or step_tokens_for(graph, most_rows)
        if most is not None and step_tokens > most:
            raise ConfigError(f"step_tokens={step_tokens} must be at most {most}, what the executor was made for")
        if not 1 <= most_rows < step_tokens:
            raise ConfigError(
                f"most_rows={most_rows} must be at least 1 and below step_tokens={step_tokens}, so that prompts go on too"
            )
        self._executor, self._end_ids = executor, frozenset(end_ids)
        self._sampler = Sampler(executor.vocab)
        self._tables = Tables(executor, blocks, prefix, share)
        self._places = Places(graph, self._tables.virtual)
        self._scheduler = Scheduler(self._tables, step_tokens, most_rows)
        self._limits = Limits(self._places, self._tables, adapters, step_tokens, most_rows)
        self._jobs: dict[int, Job] = {}
        self._untold: list[tuple[Job, Event]] = []
        self._next = self._steps = self._computed = self._guessed = self._accepted = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._jobs or self._untold)

    def add(self, request: Request) -> int:
        """The number under which the request is answered.

        Raises:
            ConfigError: It can never be answered.
            DataError: The prompt lacks tokens that mark a context.
        """
        context = self._limits.check(request)
        row = Row([int(token) for token in request.prompt], request.adapter, context)
        self._next += 1
        kind = Beams if request.beams else Answering if request.score_from is None else Scoring
        job = kind(self._next, request, row, self._tables, self._end_ids)
        self._jobs[job.id] = job
        self._scheduler.waiting.append(job)
        return job.id

    def cancel(self, number: int) -> None:
        """Ends a request; the next step tells so. Nothing happens if it has ended."""
        job = self._jobs.get(number)
        if job:
            self._untold.append((job, Event(number, done=job.ended("cancelled", length=job.told))))
            self._drop(job)

    def step(self) -> list[Event]:
        """Computes the next tokens, and tells what happened."""
        events = [event for job, done in self._untold for event in self._told(job, [done])]
        self._untold = []
        parts = self._scheduler.plan()
        if parts:
            events += self._run(parts)
        elif self._jobs:
            raise RuntimeError(f"{len(self._jobs)} requests, and none of them can go on")
        return events

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers, in order. A request that cannot be answered has the reason ``error``; the others are answered.

        What a callback raises is raised, and ends all of them.
        """
        answers: dict[int, Generation] = {}
        places: dict[int, int] = {}
        for place, request in enumerate(requests):
            try:
                places[self.add(request)] = place
            except LlmctlError as error:
                answers[place] = Generation([], "error", str(error))
        try:
            while len(answers) < len(requests):
                for event in self.step():
                    if event.done and event.id in places:
                        if event.done.cause:
                            raise event.done.cause
                        answers[places[event.id]] = event.done
        finally:
            for number in places:
                self.cancel(number)
        return [answers[place] for place in range(len(requests))]

    def statistics(self) -> Statistics:
        """State and sums."""
        scheduler, blocks = self._scheduler, self._tables.blocks
        rows = [row for job in scheduler.running for row in job.rows]
        return Statistics(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks=blocks.count,
            used=blocks.used,
            held=self._tables.held(rows),
            steps=self._steps,
            computed=self._computed,
            preempted=scheduler.preempted,
            guessed=self._guessed,
            accepted=self._accepted,
        )

    def _run(self, parts: list[Part]) -> list[Event]:
        batch = batch_of(parts, self._places)
        logits_LV = self._executor.run(batch)
        choices = [choice for part in parts if part.finishes for choice in part.job.choices(part)]
        chosen = self._sampler.choose(np.ascontiguousarray(logits_LV, np.float32), choices)
        found = Found(
            logits_LV, chosen.token_L.tolist(), [FAULTS.get(status, "") for status in chosen.status_L.tolist()]
        )
        self._steps, self._computed = self._steps + 1, self._computed + len(batch.ids_T)
        events: list[Event] = []
        start = 0
        for part in parts:
            rows = slice(start, start + (1 + len(part.drafts) if part.finishes else 0))
            start = rows.stop
            if part.job.id not in self._jobs:
                continue
            self._tables.commit(part.row, part.count)
            if rows.stop > rows.start:
                events += self._advance(part, Found(logits_LV[rows], found.tokens[rows], found.faults[rows]))
        return events

    def _advance(self, part: Part, found: Found) -> list[Event]:
        before = part.row.computed
        events = part.job.advance(part, found)
        if part.drafts and part.job.request.score_from is None:
            self._guessed += len(part.drafts)
            self._accepted += part.row.computed - before
        return self._told(part.job, events)

    def _told(self, job: Job, events: list[Event]) -> list[Event]:
        """Tells the request's callback; returns what was told. Nothing is told after the end."""
        told: list[Event] = []
        for event in events:
            told.append(event)
            job.told += event.token is not None
            if event.done:
                self._drop(job)
            ended = self._call(job, event)
            if event.done or job.id not in self._jobs:
                break
            if ended:
                return told + self._told(job, [Event(job.id, done=ended)])
        return told

    def _call(self, job: Job, event: Event) -> Generation | None:
        """Calls the request's callback; the answer, if that ends it."""
        if not job.request.on_event:
            return None
        try:
            return job.ended("stop", length=job.told) if job.request.on_event(event) else None
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            return replace(job.ended("error", message, job.told), cause=error)

    def _drop(self, job: Job) -> None:
        if self._jobs.pop(job.id, None):
            self._scheduler.remove(job)

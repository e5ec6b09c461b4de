"""Continuous batching: requests join and leave between steps, each with parameters and random numbers of its own.

The answer to a request does not depend on what else runs. ``scheduler`` decides which tokens a step computes,
``block_manager`` where their keys and values are, ``request_state`` what a request makes of its logits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.errors import ConfigError, LlmctlError
from llmctl.infer.engine import sequence
from llmctl.infer.engine.beam_search import BeamSearchState
from llmctl.infer.engine.block_manager import BlockManager
from llmctl.infer.engine.build_batch import build_batch
from llmctl.infer.engine.generation import GenerationState
from llmctl.infer.engine.limits import Limits, step_tokens_for
from llmctl.infer.engine.positions import BidirectionalPrefix, PositionRule
from llmctl.infer.engine.request_state import ChunkOutput, RequestState, ScheduledChunk
from llmctl.infer.engine.scheduler import Scheduler
from llmctl.infer.engine.scoring import ScoringState
from llmctl.infer.executors.base import Executor, Float
from llmctl.infer.request import Event, Generation, Request
from llmctl.infer.sampling.rows import FAULTS, SamplerInput, SamplerOutput
from llmctl.infer.sampling.sampler import Sampler


@dataclass(frozen=True)
class EngineStats:
    """State and counters of an engine.

    Attributes:
        running: Requests that have blocks.
        waiting: Requests that have none.
        blocks: Blocks of the KV cache.
        used_blocks: Blocks with a reference, those of virtual tokens included.
        used_positions: Positions in them that hold something.
        steps: Steps so far.
        computed_tokens: Tokens that went through the model so far.
        preemptions: How often a request gave up its blocks so far.
        draft_tokens: Draft tokens so far.
        accepted_tokens: Draft tokens that were accepted so far.
        restarts: How often a step failed and the engine began anew so far.
    """

    running: int
    waiting: int
    blocks: int
    used_blocks: int
    used_positions: int
    steps: int
    computed_tokens: int
    preemptions: int
    draft_tokens: int
    accepted_tokens: int
    restarts: int


class Engine:
    """Answers requests on an executor. For one thread; ``async_engine.AsyncEngine`` serves several.

    Args:
        executor: Computes steps.
        graph: The model that it computes.
        blocks: Blocks of the KV cache (``kv_budget.blocks_for``).
        end_ids: Tokens that end an answer.
        prefix: Keys and values of virtual tokens before every sequence [layers, 2, P, K, H]; None = there are none.
        adapters: Number of adapters that requests may name.
        step_tokens: Maximum number of tokens of a step; a long prompt is computed over several steps. None = what the executor takes,
            or what is enough for the model (``limits.step_tokens_for``).
        most_rows: Maximum number of sequences (answers, or beams of them) that run together.
        share: Whether prompts with equal first tokens share blocks (prefix caching).

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
        limit = executor.max_tokens
        step_tokens = step_tokens or limit or step_tokens_for(graph, most_rows)
        if limit is not None and step_tokens > limit:
            raise ConfigError(f"step_tokens={step_tokens} must be at most {limit}, what the executor was made for")
        if not 1 <= most_rows < step_tokens:
            raise ConfigError(
                f"most_rows={most_rows} must be at least 1 and below step_tokens={step_tokens}, so that prompts progress too"
            )
        self._executor, self._end_ids = executor, frozenset(end_ids)
        self._sampler = Sampler(executor.vocab)
        self._manager = BlockManager(executor, blocks, prefix, share)
        self._rule = PositionRule(graph, self._manager.virtual_tokens)
        self._scheduler = Scheduler(self._manager, step_tokens, most_rows)
        self._limits = Limits(self._rule, self._manager, adapters, step_tokens, most_rows)
        self._states: dict[int, RequestState] = {}
        self._pending_events: list[tuple[RequestState, Event]] = []
        self._last_id = self._steps = self._computed = self._drafted = self._accepted = 0
        self._restarts = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._states or self._pending_events)

    def check(self, request: Request) -> BidirectionalPrefix | None:
        """Passes when a request can be answered; for any thread.

        Returns:
            The bidirectional prefix of its prompt, if the model has such.

        Raises:
            ConfigError: It can never be answered.
            DataError: The prompt lacks the tokens that delimit a bidirectional prefix.
        """
        return self._limits.check(request)

    def add(self, request: Request) -> int:
        """Adds a request; returns its id, which its events carry.

        Raises:
            ConfigError: The request can never be answered, such as a prompt longer than the KV cache.
            DataError: The prompt lacks the tokens that delimit a bidirectional prefix.
        """
        prefix = self.check(request)
        prompt = sequence.Sequence([int(token) for token in request.prompt], request.adapter, prefix)
        self._last_id += 1
        kind = BeamSearchState if request.beams else GenerationState if request.score_from is None else ScoringState
        state = kind(self._last_id, request, prompt, self._manager, self._end_ids)
        self._states[state.id] = state
        self._scheduler.waiting.append(state)
        return state.id

    def cancel(self, number: int) -> None:
        """Ends a request; the next step emits its last event. Nothing happens if it has ended."""
        state = self._states.get(number)
        if state:
            done = state.result("cancelled", length=state.num_emitted)
            self._pending_events.append((state, Event(number, done=done)))
            self._drop(state)

    def step(self) -> list[Event]:
        """Runs one step; returns its events."""
        events = [event for state, pending in self._pending_events for event in self._emit(state, [pending])]
        self._pending_events = []
        chunks = self._scheduler.schedule()
        if chunks:
            events += self._run(chunks)
        elif self._states:
            raise RuntimeError(f"{len(self._states)} requests, and none of them can progress")
        return events

    def restart(self, error: Exception) -> list[Event]:
        """Begins anew after a step that failed: the cache is empty, and waiting requests go on waiting.

        Args:
            error: What the step raised, which ends the requests that ran.

        Returns:
            The last events of these.
        """
        self._restarts += 1
        message = f"a step of the engine failed: {type(error).__name__}: {error}"
        failed = self._scheduler.drop_running()
        self._manager.reset()
        events: list[Event] = []
        for state in failed:
            self._states.pop(state.id, None)
            done = state.result("error", message, state.num_emitted)
            events.append(Event(state.id, done=done))
            self._call(state, events[-1])
        return events

    @property
    def executor(self) -> Executor:
        """What computes the steps."""
        return self._executor

    def uses(self, adapter: int) -> bool:
        """Whether a request that has not ended names this adapter."""
        return any(state.request.adapter == adapter for state in self._states.values())

    def replace_executor(self, executor: Executor, adapters: int) -> None:
        """Goes on with another executor of the same model, such as one with other adapters.

        Requests that run are computed again from their tokens, and their answers go on.

        Args:
            executor: Takes steps of as many tokens as the one before.
            adapters: Number of its adapters.
        """
        self._scheduler.preempt_all()
        self._executor = executor
        self._manager.reset(executor)
        self._limits = replace(self._limits, adapters=adapters)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers, in order. A request that is refused has the finish reason ``error``; the others are answered.

        What a callback raises is raised, and ends all of them.
        """
        answers: dict[int, Generation] = {}
        indices: dict[int, int] = {}
        for index, request in enumerate(requests):
            try:
                indices[self.add(request)] = index
            except LlmctlError as error:
                answers[index] = Generation([], "error", str(error))
        try:
            while len(answers) < len(requests):
                for event in self.step():
                    if event.done and event.id in indices:
                        if event.done.cause:
                            raise event.done.cause
                        answers[indices[event.id]] = event.done
        finally:
            for number in indices:
                self.cancel(number)
        return [answers[index] for index in range(len(requests))]

    def statistics(self) -> EngineStats:
        """State and counters."""
        scheduler, pool = self._scheduler, self._manager.pool
        sequences = [one for state in scheduler.running for one in state.sequences]
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks=pool.count,
            used_blocks=pool.num_used,
            used_positions=self._manager.used_positions(sequences),
            steps=self._steps,
            computed_tokens=self._computed,
            preemptions=scheduler.preemptions,
            draft_tokens=self._drafted,
            accepted_tokens=self._accepted,
            restarts=self._restarts,
        )

    def _run(self, chunks: list[ScheduledChunk]) -> list[Event]:
        batch = build_batch(chunks, self._rule)
        logits_LV = self._executor.run(batch)
        broken, chosen = self._choose(chunks, np.ascontiguousarray(logits_LV, np.float32))
        tokens, logprobs = chosen.token_L.tolist(), chosen.logprob_L.tolist()
        faults = [FAULTS.get(status, "") for status in chosen.status_L.tolist()]
        self._steps, self._computed = self._steps + 1, self._computed + len(batch.ids_T)
        events: list[Event] = []
        start = 0
        for chunk in chunks:
            rows = slice(start, start + (1 + len(chunk.draft) if chunk.needs_logits else 0))
            start = rows.stop
            if chunk.state.id not in self._states:
                continue
            self._manager.commit(chunk.sequence, chunk.count)
            if rows.stop > rows.start:
                output = ChunkOutput(logits_LV[rows], tokens[rows], logprobs[rows], faults[rows])
                events += self._process(chunk, output, broken.get(chunk.state.id))
        return events

    def _choose(self, chunks: list[ScheduledChunk], logits_LV: Float) -> tuple[dict[int, Exception], SamplerOutput]:
        """What went wrong with requests, by id, and the tokens of all rows."""
        inputs: list[SamplerInput] = []
        broken: dict[int, Exception] = {}
        for chunk in (chunk for chunk in chunks if chunk.needs_logits):
            count = 1 + len(chunk.draft)
            try:
                inputs += chunk.state.sampler_inputs(chunk)
            except Exception as error:  # of this request only
                broken[chunk.state.id] = error
                inputs += [SamplerInput()] * count
        asked = any(chunk.state.request.wants_logprobs for chunk in chunks)
        return broken, self._sampler.choose(logits_LV, inputs, asked)

    def _process(self, chunk: ScheduledChunk, output: ChunkOutput, error: Exception | None) -> list[Event]:
        before = chunk.sequence.computed
        events: list[Event] = []
        if error is None:
            try:
                events = chunk.state.process_output(chunk, output)
            except Exception as raised:  # of this request only
                error = raised
        if error is not None:
            state = chunk.state
            failed = state.result("error", f"{type(error).__name__}: {error}", state.num_emitted)
            failed = replace(failed, cause=error if isinstance(error, LlmctlError) else None)
            return self._emit(state, [Event(state.id, done=failed)])
        if chunk.draft and chunk.state.request.score_from is None:
            self._drafted += len(chunk.draft)
            self._accepted += chunk.sequence.computed - before
        return self._emit(chunk.state, events)

    def _emit(self, state: RequestState, events: list[Event]) -> list[Event]:
        """Passes events to the request's callback; returns those that were emitted, up to the last event of the request."""
        emitted: list[Event] = []
        for event in events:
            emitted.append(event)
            state.num_emitted += event.token is not None
            if event.done:
                self._drop(state)
            ended = self._call(state, event)
            if event.done or state.id not in self._states:
                break
            if ended:
                return emitted + self._emit(state, [Event(state.id, done=ended)])
        return emitted

    def _call(self, state: RequestState, event: Event) -> Generation | None:
        """Calls the request's callback; returns the answer, if the callback ends it."""
        if not state.request.on_event:
            return None
        try:
            stopped = state.request.on_event(event)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            return replace(state.result("error", message, state.num_emitted), cause=error)
        return state.result("stop", length=state.num_emitted) if stopped else None

    def _drop(self, state: RequestState) -> None:
        if self._states.pop(state.id, None):
            self._scheduler.remove(state)

"""A request that is answered token by token, with or without draft tokens."""

from __future__ import annotations

from collections.abc import Collection

from llmctl.infer.engine.block_manager import BlockManager
from llmctl.infer.engine.prompt_lookup import PromptLookup
from llmctl.infer.engine.request_state import ChunkOutput, ScheduledChunk
from llmctl.infer.engine.sequence import Sequence
from llmctl.infer.request import Event, Generation, Request
from llmctl.infer.sampling.constraint import Words
from llmctl.infer.sampling.logprobs import token_logprob
from llmctl.infer.sampling.params import TokenLogprob
from llmctl.infer.sampling.rows import SamplerInput, sampler_input
from llmctl.infer.sampling.single import generator_for


class GenerationState:
    """The answer of one sequence.

    Args:
        number: Id of the request.
        request: The request.
        sequence: The prompt.
        manager: Holds the sequence's blocks.
        end_ids: Tokens that end an answer.
    """

    def __init__(
        self, number: int, request: Request, sequence: Sequence, manager: BlockManager, end_ids: Collection[int]
    ) -> None:
        self.id, self.request, self.sequences, self.max_sequences = number, request, [sequence], 1
        self.num_emitted, self.may_draft, self.cached_tokens = 0, request.draft > 0, None
        self._manager, self._end_ids = manager, request.options.ends(end_ids)
        self._random = generator_for(request.options, request.index)
        self._draws: list[float] = []
        self._matcher = request.constraint.matcher() if request.constraint else None
        self._lookup = PromptLookup(sequence.ids) if request.draft else None
        self._prompt = len(sequence.ids)
        self._logprobs: list[TokenLogprob] = []

    def draft(self, count: int) -> list[int]:
        """At most this many draft tokens; none if the request has no speculative decoding or is nearly complete."""
        if not self._lookup:
            return []
        # A step yields one token more than it has draft tokens.
        room = self.request.options.max_new_tokens - self._generated - 1
        return self._lookup.propose(min(count, self.request.draft, room))

    def sampler_inputs(self, chunk: ScheduledChunk) -> list[SamplerInput]:
        """Inputs for the next token and after each draft token; unused random numbers are kept for the next step."""
        params, count = self.request.options, 1 + len(chunk.draft)
        while params.sample and len(self._draws) < count:
            self._draws.append(self._random.random())
        masks = self._masks(chunk.draft)
        inputs = []
        for index in range(count):
            context = chunk.sequence.ids + chunk.draft[:index] if params.penalised else ()
            draw = self._draws[index] if params.sample else 0.0
            row = sampler_input(params, context, self._generated + index, self._end_ids, draw)
            row.allowed = masks[index] if index < len(masks) else None
            inputs.append(row)
        return inputs

    def _masks(self, draft: list[int]) -> list[Words | None]:
        """Tokens that may come after the sequence and after each draft token, up to the first that may not come itself."""
        if self._matcher is None:
            return []
        masks, taken = [self._matcher.allowed()], 0
        for token in draft:
            if not self._matcher.accept([token]):
                break
            taken += 1
            if self._matcher.complete:
                break
            masks.append(self._matcher.allowed())
        self._matcher.undo(taken)
        return masks

    def process_output(self, chunk: ScheduledChunk, output: ChunkOutput) -> list[Event]:
        """Accepts draft tokens as long as they equal the sampled tokens, and one sampled token more."""
        sequence, params, events = chunk.sequence, self.request.options, list[Event]()
        rows = zip(output.logits_LV, output.tokens, output.logprobs, output.faults, [*chunk.draft, None], strict=True)
        for logits_V, token, chosen_logprob, fault, drafted in rows:
            if fault:
                return [*events, Event(self.id, done=self.result("error", fault))]
            if token in self._end_ids:
                return [*events, Event(self.id, done=self.result("end"))]
            sequence.ids.append(token)
            del self._draws[:1]
            logprob = token_logprob(logits_V, token, params, (token, chosen_logprob))
            if logprob:
                self._logprobs.append(logprob)
            events.append(Event(self.id, token, logprob))
            if self._matcher is not None and self._ends_with(token):
                return [*events, Event(self.id, done=self.result("end"))]
            if self._generated == params.max_new_tokens:
                return [*events, Event(self.id, done=self.result("length"))]
            if token != drafted:
                break
            self._manager.commit(sequence, 1)
        return events

    def _ends_with(self, token: int) -> bool:
        """Takes the next token of an answer with a constraint; returns whether nothing may follow it."""
        assert self._matcher is not None
        if not self._matcher.accept([token]):
            raise ValueError(f"the token {token} was chosen, which the grammar does not allow")
        if self._matcher.complete:
            return True
        self._matcher.prepare()
        return False

    def result(self, reason: str, error: str = "", length: int | None = None) -> Generation:
        """The answer so far, or its first ``length`` tokens."""
        ids, scores = self.sequences[0].ids[self._prompt :][:length], self._logprobs[:length]
        return Generation(ids, reason, error, scores, cached_tokens=self.cached_tokens or 0)

    @property
    def _generated(self) -> int:
        return len(self.sequences[0].ids) - self._prompt

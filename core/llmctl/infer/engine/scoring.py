"""A request for the log-probabilities of given tokens: they are fed as draft tokens, all of which are accepted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from llmctl.infer.engine.block_manager import BlockManager
from llmctl.infer.engine.request_state import ChunkOutput, ScheduledChunk
from llmctl.infer.engine.sequence import Sequence
from llmctl.infer.request import Event, Generation, Request
from llmctl.infer.sampling.logprobs import token_logprob
from llmctl.infer.sampling.params import TokenLogprob
from llmctl.infer.sampling.rows import SamplerInput

MAX_DRAFT = 64
"""Maximum number of draft tokens per step, each of which takes a row of logits."""


class ScoringState:
    """Log-probabilities of a prompt's tokens from ``score_from`` on.

    The sequence starts with the tokens before ``score_from`` only, so that the prefix cache cannot supply the scored tokens,
    whose logits are needed.

    Args:
        number: Id of the request.
        request: The request.
        sequence: The prompt.
        manager: Holds the sequence's blocks.
        end_ids: Not used: an end token is scored as any other.
    """

    def __init__(
        self, number: int, request: Request, sequence: Sequence, manager: BlockManager, end_ids: Collection[int]
    ) -> None:
        self.id, self.request, self.sequences, self.max_sequences = number, request, [sequence], 1
        self.num_emitted, self.may_draft, self.cached_tokens = 0, True, None
        self._manager, self._ids = manager, sequence.ids
        sequence.ids = sequence.ids[: request.score_from]
        self._params = request.options
        if self._params.logprobs is None:
            self._params = replace(self._params, logprobs=0)
        self._logprobs: list[TokenLogprob] = []

    def draft(self, count: int) -> list[int]:
        """The next tokens, without the last one, after which nothing is scored."""
        start = len(self.sequences[0].ids)
        return self._ids[start : min(start + min(count, MAX_DRAFT), len(self._ids) - 1)]

    def sampler_inputs(self, chunk: ScheduledChunk) -> list[SamplerInput]:
        """Greedy inputs; the sampler's only use here is its check that the logits are finite."""
        return [SamplerInput()] * (1 + len(chunk.draft))

    def process_output(self, chunk: ScheduledChunk, output: ChunkOutput) -> list[Event]:
        """Scores a token for each row of logits."""
        sequence, drafted = chunk.sequence, len(chunk.draft)
        rows = zip(output.logits_LV, output.tokens, output.logprobs, output.faults, strict=True)
        for index, (logits_V, likeliest, its_logprob, fault) in enumerate(rows):
            if fault:
                return [Event(self.id, done=self.result("error", fault))]
            token = self._ids[len(sequence.ids)]
            if self.request.on_logits:
                self.request.on_logits(len(sequence.ids), logits_V)
            logprob = token_logprob(logits_V, token, self._params, (likeliest, its_logprob))
            assert logprob is not None
            self._logprobs.append(logprob)
            sequence.ids.append(token)
            if len(sequence.ids) == len(self._ids):
                return [Event(self.id, done=self.result("scored"))]
            if index < drafted:
                self._manager.commit(sequence, 1)
        return []

    def result(self, reason: str, error: str = "", length: int | None = None) -> Generation:
        """The log-probabilities so far; there is no ``length``, as no tokens are emitted."""
        return Generation([], reason, error, self._logprobs, cached_tokens=self.cached_tokens or 0)

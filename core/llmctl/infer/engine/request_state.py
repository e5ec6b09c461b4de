"""A request in progress: its sequences, and what it makes of their logits.

``generation`` follows one sequence, ``beam_search`` several, ``scoring`` a given one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llmctl.infer.engine.sequence import Sequence
from llmctl.infer.executors.base import Float
from llmctl.infer.request import Event, Generation, Request
from llmctl.infer.sampling.rows import SamplerInput


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Tokens of a sequence that are computed in one step.

    Attributes:
        state: The request of the sequence.
        sequence: The sequence.
        count: Number of its pending tokens.
        draft: Draft tokens after the last one.
    """

    state: RequestState
    sequence: Sequence
    count: int
    draft: list[int]

    @property
    def needs_logits(self) -> bool:
        """Whether the sequence's last token is in the chunk, so that its next token can be chosen."""
        return self.count == self.sequence.pending


@dataclass(frozen=True, slots=True)
class ChunkOutput:
    """What a step computed for a chunk: a row for the sequence's last token and for each draft token.

    Attributes:
        logits_LV: Logits.
        tokens: The token that was chosen after each.
        logprobs: Its log-probability, if any request of the step asks for some; else 0.
        faults: Why no token could be chosen; empty = one was.
    """

    logits_LV: Float
    tokens: list[int]
    logprobs: list[float]
    faults: list[str]


class RequestState(Protocol):
    """A request in progress.

    Attributes:
        id: Id of the request.
        request: The request.
        sequences: Its sequences; their blocks belong to the block manager.
        max_sequences: Maximum number of sequences that it will have.
        num_emitted: Tokens of its answer whose events were emitted.
        may_draft: Whether it may have draft tokens.
        cached_tokens: Tokens of the prompt that were in the KV cache when it first ran; None = it has not run.
    """

    id: int
    request: Request
    sequences: list[Sequence]
    max_sequences: int
    num_emitted: int
    may_draft: bool
    cached_tokens: int | None

    def draft(self, count: int) -> list[int]:
        """At most this many draft tokens after the only sequence."""

    def sampler_inputs(self, chunk: ScheduledChunk) -> list[SamplerInput]:
        """How a token is chosen after the chunk's last token and after each draft token, should it be accepted."""

    def process_output(self, chunk: ScheduledChunk, output: ChunkOutput) -> list[Event]:
        """Takes the output of a step; returns the events that it causes."""

    def result(self, reason: str, error: str = "", length: int | None = None) -> Generation:
        """The answer so far, or its first ``length`` tokens, that ends for this reason."""

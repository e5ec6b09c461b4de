"""Beam search over forks of a sequence, by the rules of transformers.

In each step the continuations of all beams are compared; of the best ones those that are complete are kept as hypotheses, and
the others are the next beams. Penalties are applied to log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.infer.engine.block_manager import BlockManager
from llmctl.infer.engine.request_state import ChunkOutput, ScheduledChunk
from llmctl.infer.engine.sequence import Sequence
from llmctl.infer.request import BeamOptions, Event, Generation, Request
from llmctl.infer.sampling.logprobs import log_softmax
from llmctl.infer.sampling.rows import FAULTS, NOTHING_LEFT, SamplerInput
from llmctl.infer.sampling.single import penalised


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A beam and a token after it.

    Attributes:
        beam: Index of the beam.
        token: The token.
        score: Sum of the log-probabilities of the whole answer.
    """

    beam: int
    token: int
    score: float


class BeamSearchState:
    """An answer by beam search.

    Args:
        number: Id of the request.
        request: The request.
        sequence: The prompt.
        manager: Holds the sequences' blocks.
        end_ids: Tokens that end an answer.
    """

    def __init__(
        self, number: int, request: Request, sequence: Sequence, manager: BlockManager, end_ids: Collection[int]
    ) -> None:
        assert request.beams
        self.id, self.request, self.sequences = number, request, [sequence]
        self.num_emitted, self.max_sequences, self.may_draft = 0, request.beams.beams, False
        self.cached_tokens: int | None = None
        self._options: BeamOptions = request.beams
        self._manager, self._end_ids = manager, end_ids
        self._prompt = len(sequence.ids)
        self._scores = [0.0]
        self._hypotheses: list[Generation] = []
        self._logprobs: dict[Sequence, NDArray[np.float64]] = {}

    def draft(self, count: int) -> list[int]:
        """None: beam search has no speculative decoding."""
        return []

    def sampler_inputs(self, chunk: ScheduledChunk) -> list[SamplerInput]:
        """The likeliest token, only to know that the logits are finite."""
        return [SamplerInput()]

    def process_output(self, chunk: ScheduledChunk, output: ChunkOutput) -> list[Event]:
        """Keeps the sequence's log-probabilities; when all sequences have theirs, chooses the next beams."""
        if output.faults[0]:
            return [Event(self.id, done=self.result("error", output.faults[0]))]
        self._logprobs[chunk.sequence] = penalised(
            log_softmax(output.logits_LV[0]), chunk.sequence.ids, self._generated, self.request.options, self._end_ids
        )
        if any(one.pending or one not in self._logprobs for one in self.sequences):
            return []
        best = self._best()
        self._keep_complete(best[: self.max_sequences])
        active = [one for one in best if not self._is_complete(one)][: self.max_sequences]
        if not active and not self._hypotheses:
            return [Event(self.id, done=self.result("error", FAULTS[NOTHING_LEFT]))]
        if not active or self._is_done(active[0].score):
            return [Event(self.id, done=self._answer())]
        self._advance(active)
        return []

    def result(self, reason: str, error: str = "", length: int | None = None) -> Generation:
        """The best beam so far; there is no ``length``, as no tokens are emitted."""
        return Generation(self.sequences[0].ids[self._prompt :], reason, error, score=self._scores[0])

    @property
    def _generated(self) -> int:
        return len(self.sequences[0].ids) - self._prompt

    def _best(self) -> list[_Candidate]:
        """The best continuations of all beams: enough that all beams can be filled even if every one that can end does."""
        total_RV = np.stack([self._logprobs[one] + s for one, s in zip(self.sequences, self._scores, strict=True)])
        count = min(max(2, 1 + len(self._end_ids)) * self.max_sequences, total_RV.size)
        flat = total_RV.ravel()
        order = np.argpartition(-flat, count - 1)[:count]
        order = order[np.lexsort((order, -flat[order]))]
        vocab = total_RV.shape[1]
        candidates = [_Candidate(int(i) // vocab, int(i) % vocab, float(flat[i])) for i in order]
        return [one for one in candidates if one.score > -math.inf]

    def _is_complete(self, one: _Candidate) -> bool:
        return one.token in self._end_ids or self._generated + 1 == self.request.options.max_new_tokens

    def _keep_complete(self, best: list[_Candidate]) -> None:
        for one in best:
            if self._is_complete(one):
                ids = self.sequences[one.beam].ids[self._prompt :]
                score = one.score / (self._generated + 1) ** self._options.length_penalty
                ends = one.token in self._end_ids
                whole = ids if ends else [*ids, one.token]
                self._hypotheses.append(Generation(whole, "end" if ends else "length", score=score))
        self._hypotheses.sort(key=lambda kept: -(kept.score or 0.0))
        del self._hypotheses[self.max_sequences :]

    def _is_done(self, best: float) -> bool:
        """Whether the search ends, by the rule for early stopping.

        Args:
            best: The highest score of a beam that is not complete.
        """
        if len(self._hypotheses) < self.max_sequences:
            return False
        if self._options.early_stopping is True:
            return True
        penalty, length = self._options.length_penalty, self._generated + 1
        if self._options.early_stopping == "never" and penalty > 0:
            length = self.request.options.max_new_tokens
        return bool(best / length**penalty <= (self._hypotheses[-1].score or 0.0))

    def _advance(self, active: list[_Candidate]) -> None:
        """Makes candidates the sequences: the first of a beam on the beam's own sequence, others on forks."""
        before, taken = self.sequences, set[int]()
        self.sequences = []
        for one in active:
            sequence = before[one.beam]
            self.sequences.append(self._manager.fork(sequence) if one.beam in taken else sequence)
            taken.add(one.beam)
        for index, sequence in enumerate(before):
            if index not in taken:
                self._manager.free(sequence)
        for sequence, one in zip(self.sequences, active, strict=True):
            sequence.ids.append(one.token)
        self._scores, self._logprobs = [one.score for one in active], {}

    def _answer(self) -> Generation:
        best, *others = self._hypotheses[: self._options.answers]
        return Generation(best.ids, best.finish_reason, score=best.score, others=tuple(others))

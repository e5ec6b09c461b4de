"""A request for the log-probabilities of given tokens: they are fed as draft tokens, all of which are accepted."""

from __future__ import annotations

from collections.abc import Collection

from llmctl.infer.engine.block_manager import Row, Tables
from llmctl.infer.engine.sequence import Found, Part
from llmctl.infer.request import Event, Generation, Request
from llmctl.infer.sampling import TokenLogprob
from llmctl.infer.sampling.logprobs import log_softmax
from llmctl.infer.sampling.rows import SamplerInput

ROWS = 64
"""Most draft tokens per step, each of which takes a row of logits."""


class Scoring:
    """Scores the tokens of a prompt from ``score_from`` on.

    Only the tokens before are the row at first, so that blocks which hold the others already are not found in the cache: their
    logits would be missing.

    Args:
        number: Of the request.
        request: The request.
        row: The prompt.
        tables: Holds the row's blocks.
        end_ids: Not used: an end token is scored as any other.
    """

    def __init__(self, number: int, request: Request, row: Row, tables: Tables, end_ids: Collection[int]) -> None:
        self.id, self.request, self.rows, self.width = number, request, [row], 1
        self.told, self.drafting = 0, True
        self._tables, self._ids = tables, row.ids
        row.ids = row.ids[: request.score_from]
        self._scores: list[TokenLogprob] = []

    def guess(self, count: int) -> list[int]:
        """The next tokens but one, which follows from the logits of the last."""
        start = len(self.rows[0].ids)
        return self._ids[start : min(start + min(count, ROWS), len(self._ids) - 1)]

    def choices(self, part: Part) -> list[SamplerInput]:
        """The likeliest token after each, only to know that the logits are finite."""
        return [SamplerInput()] * (1 + len(part.drafts))

    def advance(self, part: Part, found: Found) -> list[Event]:
        """Scores a token for each row of logits."""
        row, drafts = part.row, len(part.drafts)
        for index, (logits_V, fault) in enumerate(zip(found.logits_LV, found.faults, strict=True)):
            if fault:
                return [Event(self.id, done=self.ended("error", fault))]
            token = self._ids[len(row.ids)]
            self._scores.append(TokenLogprob(token, float(log_softmax(logits_V)[token])))
            row.ids.append(token)
            if len(row.ids) == len(self._ids):
                return [Event(self.id, done=self.ended("scored"))]
            if index < drafts:
                self._tables.commit(row, 1)
        return []

    def ended(self, reason: str, error: str = "", length: int | None = None) -> Generation:
        """The log-probabilities so far; a ``length`` is not asked for, as no tokens are emitted."""
        return Generation([], reason, error, self._scores)

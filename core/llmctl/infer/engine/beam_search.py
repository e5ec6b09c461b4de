"""Beam search over forks of a row, by the rules of transformers: the likeliest whole answers, not token by token.

In each step all beams' continuations are compared; of the best, those that are complete are kept aside, the others are
the next beams. Penalties are applied to log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.infer.engine.block_manager import Row, Tables
from llmctl.infer.engine.sequence import Found, Part
from llmctl.infer.request import BeamOptions, Event, Generation, Request
from llmctl.infer.sampling.logprobs import log_softmax
from llmctl.infer.sampling.rows import FAULTS, NOTHING_LEFT, SamplerInput
from llmctl.infer.sampling.single import penalised


@dataclass(frozen=True, slots=True)
class _Continuation:
    """A beam and a token after it.

    Attributes:
        beam: Index of the beam.
        token: The token.
        score: Sum of log-probabilities of the whole answer.
    """

    beam: int
    token: int
    score: float


class Beams:
    """An answer by beam search.

    Args:
        number: Of the request.
        request: The request.
        row: The prompt.
        tables: Holds the rows' blocks.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, number: int, request: Request, row: Row, tables: Tables, end_ids: Collection[int]) -> None:
        assert request.beams
        self.id, self.request, self.rows, self.told = number, request, [row], 0
        self.width, self.drafting = request.beams.beams, False
        self._rules: BeamOptions = request.beams
        self._tables, self._end_ids = tables, end_ids
        self._prompt = len(row.ids)
        self._scores = [0.0]
        self._finished: list[Generation] = []
        self._logprobs: dict[Row, NDArray[np.float64]] = {}

    def guess(self, count: int) -> list[int]:
        """None: beams are not guessed ahead."""
        return []

    def choices(self, part: Part) -> list[SamplerInput]:
        """The likeliest token, only to know that there is one."""
        return [SamplerInput()]

    def advance(self, part: Part, found: Found) -> list[Event]:
        """Keeps the row's log-probabilities; when all rows have theirs, chooses the next beams."""
        if found.faults[0]:
            return [Event(self.id, done=self.ended("error", found.faults[0]))]
        self._logprobs[part.row] = penalised(
            log_softmax(found.logits_LV[0]), part.row.ids, self._generated, self.request.options, self._end_ids
        )
        if any(row.pending or row not in self._logprobs for row in self.rows):
            return []
        best = self._best()
        self._keep_finished(best[: self.width])
        going = [one for one in best if not self._complete(one)][: self.width]
        if not going and not self._finished:
            return [Event(self.id, done=self.ended("error", FAULTS[NOTHING_LEFT]))]
        if not going or self._settled(going[0].score):
            return [Event(self.id, done=self._answer())]
        self._follow(going)
        return []

    def ended(self, reason: str, error: str = "", length: int | None = None) -> Generation:
        """The best beam so far; a ``length`` is not asked for, as no tokens are told."""
        return Generation(self.rows[0].ids[self._prompt :], reason, error, score=self._scores[0])

    @property
    def _generated(self) -> int:
        return len(self.rows[0].ids) - self._prompt

    def _best(self) -> list[_Continuation]:
        """The best continuations of all beams, so many that enough are left when all that can end do."""
        total_RV = np.stack([self._logprobs[row] + s for row, s in zip(self.rows, self._scores, strict=True)])
        count = min(max(2, 1 + len(self._end_ids)) * self.width, total_RV.size)
        flat = total_RV.ravel()
        order = np.argpartition(-flat, count - 1)[:count]
        order = order[np.lexsort((order, -flat[order]))]
        vocab = total_RV.shape[1]
        found = [_Continuation(int(i) // vocab, int(i) % vocab, float(flat[i])) for i in order]
        return [one for one in found if one.score > -math.inf]

    def _complete(self, one: _Continuation) -> bool:
        return one.token in self._end_ids or self._generated + 1 == self.request.options.max_new_tokens

    def _keep_finished(self, best: list[_Continuation]) -> None:
        for one in best:
            if self._complete(one):
                ids = self.rows[one.beam].ids[self._prompt :]
                score = one.score / (self._generated + 1) ** self._rules.length_penalty
                ends = one.token in self._end_ids
                whole = ids if ends else [*ids, one.token]
                self._finished.append(Generation(whole, "end" if ends else "length", score=score))
        self._finished.sort(key=lambda kept: -(kept.score or 0.0))
        del self._finished[self.width :]

    def _settled(self, best: float) -> bool:
        """Whether enough answers are complete, by the rule that was asked for.

        Args:
            best: The highest score of a beam that goes on.
        """
        if len(self._finished) < self.width:
            return False
        if self._rules.early_stopping is True:
            return True
        penalty, length = self._rules.length_penalty, self._generated + 1
        if self._rules.early_stopping == "never" and penalty > 0:
            length = self.request.options.max_new_tokens
        return bool(best / length**penalty <= (self._finished[-1].score or 0.0))

    def _follow(self, going: list[_Continuation]) -> None:
        """Makes continuations the rows: the first of a beam on the beam's own row, others on forks."""
        before, taken = self.rows, set[int]()
        self.rows = []
        for one in going:
            row = before[one.beam]
            self.rows.append(self._tables.fork(row) if one.beam in taken else row)
            taken.add(one.beam)
        for index, row in enumerate(before):
            if index not in taken:
                self._tables.close(row)
        for row, one in zip(self.rows, going, strict=True):
            row.ids.append(one.token)
        self._scores, self._logprobs = [one.score for one in going], {}

    def _answer(self) -> Generation:
        best, *others = self._finished[: self._rules.answers]
        return Generation(best.ids, best.finish_reason, score=best.score, others=tuple(others))

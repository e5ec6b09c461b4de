"""What a key may use: requests and tokens per minute, and answers at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

from llmctl.serve.problems import Problem


@dataclass(frozen=True)
class Limits:
    """What a key may use; 0 = any.

    Attributes:
        requests: Requests for answers per minute.
        tokens: Tokens of prompts and answers per minute; what a request takes beyond is owed.
        parallel: Answers that run or wait at a time.
    """

    requests: int = 0
    tokens: int = 0
    parallel: int = 0

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the limits."""
        return tuple(row.name for row in fields(cls))


class Allowance:
    """What is left of the limits of a key; for the event loop.

    Args:
        limits: The limits.
        clock: The time in seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._requests, self._tokens = float(limits.requests), float(limits.tokens)
        self._held, self._at = 0, clock()

    def enter(self, answers: int, request: bool = True) -> None:
        """Takes a request for so many answers.

        Args:
            answers: How many.
            request: Whether it counts as a request; otherwise it is a part of one.

        Raises:
            Problem: One of the limits is reached.
        """
        self._refill()
        limits = self._limits
        if limits.parallel and self._held + answers > limits.parallel:
            raise _busy(f"the key may have {limits.parallel} answers at a time, and has {self._held}", 1.0)
        for name, left, limit in (
            ("requests", self._requests - request, limits.requests),
            ("tokens", self._tokens, limits.tokens),
        ):
            if limit and left < 0:
                raise _busy(f"the key may use {limit} {name} a minute, and has used them", -left * 60 / limit)
        self._requests -= request
        self._held += answers

    def leave(self, answers: int, tokens: int) -> None:
        """Answers have ended, and so many tokens were used."""
        self._refill()
        self._held -= answers
        self._tokens -= tokens

    def _refill(self) -> None:
        now = self._clock()
        minutes, self._at = (now - self._at) / 60, now
        self._requests = min(self._limits.requests, self._requests + minutes * self._limits.requests)
        self._tokens = min(self._limits.tokens, self._tokens + minutes * self._limits.tokens)


def _busy(message: str, seconds: float) -> Problem:
    headers = {"retry-after": str(max(1, math.ceil(seconds)))}
    return Problem(f"{message}; try again later", 429, code="rate_limit_exceeded", headers=headers)

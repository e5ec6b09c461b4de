"""Speed of an engine: prefill and decoding separately, in tokens per second.

Prompts are random tokens, different in each round, so that no prefix is cached. The time of each token is recorded. Prefill
ends when the last request has its first token; decoding is the tokens after that.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmctl.errors import LlmctlError
from llmctl.infer.backend import Backend
from llmctl.infer.request import Event, Request
from llmctl.infer.sampling import SamplingParams

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Round:
    """What one round of requests took.

    Attributes:
        seconds: Time of the whole round.
        prefill: Prompt tokens per second, until the last prompt had its first token.
        decode: Answer tokens per second after that; 0 = there were none.
        whole: Answer tokens per second of the whole round.
        first: Seconds to the first token, of each request.
        between: Seconds from token to token, of all answers.
    """

    seconds: float
    prefill: float
    decode: float
    whole: float
    first: tuple[float, ...]
    between: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked in a round.

    Attributes:
        prompt: Tokens of a prompt.
        new: Tokens of an answer.
        requests: Requests at once.
        vocab: Tokens are below this.
        ending: Tokens that every prompt ends with.
    """

    prompt: int
    new: int
    requests: int
    vocab: int
    ending: tuple[int, ...] = ()

    def prompts(self, seed: int) -> list[list[int]]:
        """Random prompts; equal seeds give equal prompts."""
        drawn = np.random.default_rng(seed).integers(0, self.vocab, (self.requests, self.prompt))
        kept = self.prompt - len(self.ending)
        free = [token for token in range(min(self.vocab, 64)) if token not in self.ending]
        clean = np.where(np.isin(drawn, self.ending), free[0], drawn)
        return [[*row[:kept].tolist(), *self.ending] for row in clean]


def measure(backend: Backend, load: Load, seed: int) -> Round:
    """Runs a round.

    Raises:
        LlmctlError: A request could not be answered.
    """
    times: list[list[float]] = [[] for _ in range(load.requests)]

    def clock(place: int) -> Callable[[Event], None]:
        return lambda event: times[place].append(time.perf_counter()) if event.token is not None else None

    options = SamplingParams(max_new_tokens=load.new)
    requests = [
        Request(prompt=prompt, options=options, index=place, on_event=clock(place))
        for place, prompt in enumerate(load.prompts(seed))
    ]
    begin = time.perf_counter()
    for place, made in backend.run(requests):
        if made.finish_reason == "error":
            raise LlmctlError(f"request {place + 1}: {made.error}")
    end = time.perf_counter()
    firsts = [stamps[0] for stamps in times]
    ready = max(firsts)
    later = sum(stamp > ready for stamps in times for stamp in stamps)
    return Round(
        seconds=end - begin,
        prefill=load.prompt * load.requests / (ready - begin),
        decode=later / (end - ready) if later else 0.0,
        whole=load.new * load.requests / (end - begin),
        first=tuple(first - begin for first in firsts),
        between=tuple(float(gap) for stamps in times for gap in np.diff(stamps)),
    )


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians of speeds, and percentiles of the seconds to a token."""
    speeds = {name: float(np.median([getattr(row, name) for row in rounds])) for name in ("prefill", "decode", "whole")}
    waits = {name: [wait for row in rounds for wait in getattr(row, name)] for name in ("first", "between")}
    return {
        "tokens_per_second": speeds,
        "seconds_to_first_token": _percentiles(waits["first"]),
        "seconds_between_tokens": _percentiles(waits["between"]),
    }


def as_json(row: Round) -> dict[str, Any]:
    """A round ready for JSON, without the single waits between tokens."""
    return {name: value for name, value in asdict(row).items() if name != "between"}


def peak_memory() -> int:
    """Peak memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES} if values else {}

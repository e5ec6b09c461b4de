"""Choosing tokens from logits, many rows at once; compiled, or in numpy where there is no library. No paddle here.

The order is that of transformers' processors: repetition penalty, presence and frequency penalty, excluded tokens,
temperature, top-k, top-p, min-p, then a draw. All of it in double precision. Letters: L rows, V vocabulary.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmctl_ops import library

Float = NDArray[np.float32]
Int = NDArray[np.int32]

NONE = np.empty(0, np.int32)
NO_NUMBERS, NOTHING_LEFT, NO_SUCH_TOKEN = 1, 2, 3

FAULTS = {
    NO_NUMBERS: "the highest logit is no finite number, or a penalty made it none",
    NOTHING_LEFT: "every token is excluded",
    NO_SUCH_TOKEN: "a token of the context or an excluded one is not in the vocabulary",
}
"""What a status means; 0 = a token was chosen."""


@dataclass(slots=True)
class Choice:
    """How a row chooses.

    Attributes:
        context: Prompt and answer so far, read only where there are penalties.
        generated: Tokens of the answer: the last of ``context``.
        excluded: Tokens that may not be chosen.
        sample: Draw; otherwise the highest score is taken, the first of several.
        draw: A number from 0 up to 1, drawn by the caller.
        temperature: Above 0.
        top_k: Only tokens that reach the k-th highest score; 0 = all.
        top_p: Only the likeliest tokens that together have this probability; 1 = all.
        min_p: Only tokens with at least this share of the likeliest one's probability; 0 = all.
        repetition: Penalty of all tokens of the context; 1 = none.
        presence: Subtracted from scores of tokens of the answer.
        frequency: Subtracted once for each time that they stand in the answer.
    """

    context: Int = field(default_factory=lambda: NONE)
    generated: int = 0
    excluded: Int = field(default_factory=lambda: NONE)
    sample: bool = False
    draw: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0

    @property
    def penalised(self) -> bool:
        """Whether the context matters."""
        return self.repetition != 1.0 or self.presence != 0.0 or self.frequency != 0.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the rows chose.

    Attributes:
        token_L: The tokens; where the status is not 0, nothing.
        logprob_L: Their log-probabilities in the softmax of the logits as they came; zeros where not asked for.
        status_L: 0, or a key of ``FAULTS``: one row's fault does not touch the others.
    """

    token_L: Int
    logprob_L: NDArray[np.float64]
    status_L: Int


class Native(ctypes.Structure):
    """``struct Choice`` of csrc/cpu/sample.h."""

    _fields_ = (
        ("context", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("context_count", "generated", "end_count", "top_k")),
        *((name, ctypes.c_double) for name in ("repetition", "presence", "frequency", "temperature", "top_p")),
        *((name, ctypes.c_double) for name in ("min_p", "draw", "logprob")),
        *((name, ctypes.c_int32) for name in ("sample", "token", "status")),
    )


_FIELDS = tuple((name, np.dtype(kind).str) for name, kind in Native._fields_ if kind is not ctypes.c_void_p)
LAYOUT = np.dtype(
    {
        "names": [name for name, _ in _FIELDS],
        "formats": [form for _, form in _FIELDS],
        "offsets": [getattr(Native, name).offset for name, _ in _FIELDS],
        "itemsize": ctypes.sizeof(Native),
    }
)


class Sampler:
    """Chooses from logits of one vocabulary.

    Args:
        vocab: V.
    """

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab
        self._kernel = library.load().kernel(
            "choose", *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64
        )
        self._choices = (Native * 1)()
        if self._kernel is not None:
            found = ctypes.c_int64()
            size = library.load().kernel("choose_bytes", ctypes.c_int64, ctypes.c_void_p)
            assert size is not None
            size(vocab, ctypes.addressof(found))
            self._buffer = np.zeros(found.value // 8 + 1, np.float64)

    def choose(self, logits_LV: Float, choices: Sequence[Choice], logprobs: bool = False) -> Chosen:
        """A token for each row.

        Args:
            logits_LV: Float32 and contiguous.
            choices: L of them.
            logprobs: Whether log-probabilities are wanted.

        Raises:
            ValueError: The logits have another shape or type.
        """
        rows = len(choices)
        if logits_LV.shape != (rows, self.vocab) or logits_LV.dtype != np.float32 or not logits_LV.flags.c_contiguous:
            raise ValueError(
                f"logits are {logits_LV.dtype} {list(logits_LV.shape)}, not contiguous float32 [{rows}, {self.vocab}]"
            )
        if self._kernel is None:
            return _stacked([choose_one(row, choice, logprobs) for row, choice in zip(logits_LV, choices, strict=True)])
        if rows > len(self._choices):
            self._choices = (Native * max(rows, 2 * len(self._choices)))()
        held = [fill(native, choice) for native, choice in zip(self._choices, choices, strict=False)]
        buffer = self._buffer.ctypes.data
        self._kernel(
            logits_LV.ctypes.data,
            ctypes.addressof(self._choices),
            rows,
            self.vocab,
            logprobs,
            buffer,
            self._buffer.nbytes,
        )
        del held  # the arrays that the rows point to lived until here
        found = np.frombuffer(self._choices, LAYOUT, rows)
        return Chosen(found["token"].copy(), found["logprob"].copy(), found["status"].copy())


def fill(native: Native, choice: Choice) -> tuple[Int, Int]:
    """Puts a choice into its structure; gives the arrays that it points to."""
    context = np.ascontiguousarray(choice.context, np.int32) if choice.penalised else NONE
    excluded = np.ascontiguousarray(choice.excluded, np.int32)
    native.context, native.context_count = context.ctypes.data, len(context)
    native.ends, native.end_count = excluded.ctypes.data, len(excluded)
    native.generated, native.top_k = min(max(choice.generated, 0), len(context)), choice.top_k
    native.repetition, native.presence, native.frequency = choice.repetition, choice.presence, choice.frequency
    native.temperature, native.top_p, native.min_p = choice.temperature, choice.top_p, choice.min_p
    native.draw, native.sample = choice.draw, choice.sample
    native.token, native.logprob = -1, 0.0
    return context, excluded


def _stacked(found: list[tuple[int, float, int]]) -> Chosen:
    tokens, logprobs, statuses = zip(*found, strict=True) if found else ((), (), ())
    return Chosen(np.array(tokens, np.int32), np.array(logprobs, np.float64), np.array(statuses, np.int32))


def choose_one(logits_V: Float, choice: Choice, logprobs: bool = False) -> tuple[int, float, int]:
    """What the kernel computes for a row, in numpy: token, log-probability and status."""
    named = np.concatenate([choice.context if choice.penalised else NONE, choice.excluded])
    if len(named) and (named.min() < 0 or named.max() >= len(logits_V)):
        return -1, 0.0, NO_SUCH_TOKEN
    highest = float(logits_V.max())
    if not math.isfinite(highest):
        return -1, 0.0, NO_NUMBERS
    with np.errstate(over="ignore"):
        scores_V = _penalised(logits_V.astype(np.float64), choice)
    if scores_V.max() == -math.inf:
        return -1, 0.0, NOTHING_LEFT
    if choice.sample and scores_V.max() == math.inf:
        return -1, 0.0, NO_NUMBERS
    token = _drawn(scores_V, choice) if choice.sample else int(scores_V.argmax())
    if not logprobs:
        return token, 0.0, 0
    shifted_V = logits_V.astype(np.float64) - highest
    return token, float(shifted_V[token] - math.log(np.exp(shifted_V).sum())), 0


def _penalised(scores_V: NDArray[np.float64], choice: Choice) -> NDArray[np.float64]:
    if choice.penalised and len(choice.context):
        seen = np.unique(choice.context)
        scores_V[seen] = np.where(
            scores_V[seen] < 0, scores_V[seen] * choice.repetition, scores_V[seen] / choice.repetition
        )
    if choice.penalised and choice.generated:
        answered, count = np.unique(choice.context[-choice.generated :], return_counts=True)
        scores_V[answered] -= choice.presence + choice.frequency * count
    scores_V[choice.excluded] = -math.inf
    return scores_V


def _drawn(scores_V: NDArray[np.float64], choice: Choice) -> int:
    # However low the temperature is, the highest score stays a number.
    with np.errstate(over="ignore"):
        scores_V = (scores_V - scores_V.max()) / choice.temperature
    if 0 < choice.top_k < len(scores_V):
        scores_V[scores_V < np.partition(scores_V, -choice.top_k)[-choice.top_k]] = -math.inf
    if choice.top_p < 1:
        order = np.argsort(scores_V, kind="stable")
        probability = np.exp(scores_V[order] - scores_V.max())
        least = np.cumsum(probability / probability.sum()) <= 1 - choice.top_p
        least[-1] = False
        scores_V[order[least]] = -math.inf
    if choice.min_p > 0:
        scores_V[scores_V < scores_V.max() + math.log(choice.min_p)] = -math.inf
    share_V = np.cumsum(np.exp(scores_V - scores_V.max()))
    return int((share_V / share_V[-1]).searchsorted(choice.draw, side="right"))

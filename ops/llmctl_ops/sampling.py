"""Choosing tokens from logits by compiled kernels, many rows at once. No paddle here.

The order is that of transformers' processors: repetition penalty, presence and frequency penalty, excluded tokens,
temperature, top-k, top-p, min-p, then a draw. All of it in double precision. Letters: L rows, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmctl_ops import library

Float = NDArray[np.float32]
Int = NDArray[np.int32]
Chosen = tuple[Int, NDArray[np.float64], Int]
"""Tokens, their log-probabilities in the softmax of the logits as they came (zeros where not asked for), and statuses [L]:
0 = a token was chosen, 1 = the highest logit is no finite number, or a penalty made it none, 2 = every token is excluded, 3 =
a token of the context or an excluded one is not in the vocabulary. One row's fault does not touch the others."""

NONE = np.empty(0, np.int32)


class Choice(Protocol):
    """How a row chooses.

    Attributes:
        context: Prompt and answer so far, read only where ``penalised``.
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
        penalised: Whether there are penalties.
    """

    context: Int
    generated: int
    excluded: Int
    sample: bool
    draw: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition: float
    presence: float
    frequency: float

    @property
    def penalised(self) -> bool:
        """Whether there are penalties."""


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

    Raises:
        RuntimeError: There is no compiled library.
    """

    def __init__(self, vocab: int) -> None:
        found = library.load()
        if found.handle is None:
            raise RuntimeError(f"there are no compiled kernels: {found.why}")
        self.vocab = vocab
        self._kernel = found.kernel(
            "choose", *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64
        )
        self._choices = (Native * 1)()
        needed = ctypes.c_int64()
        found.kernel("choose_bytes", ctypes.c_int64, ctypes.c_void_p)(vocab, ctypes.addressof(needed))
        self._buffer = np.zeros(needed.value // 8 + 1, np.float64)

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
        return chosen_of(self._choices, rows)


def chosen_of(choices: ctypes.Array[Native] | bytes, rows: int) -> Chosen:
    """What the kernels wrote into so many structures."""
    found = np.frombuffer(choices, LAYOUT, rows)
    return found["token"].copy(), found["logprob"].copy(), found["status"].copy()


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

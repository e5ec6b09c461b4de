"""The compiled sampler: chooses the tokens of many rows of logits at once. No paddle here.

The order is that of transformers' logits processors: repetition penalty, presence and frequency penalty, excluded tokens,
temperature, top-k, top-p, min-p, then a draw. All in double precision. Shape suffixes: L rows, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmctl_ops import library
from llmctl_ops.structs import FLAG, POINTER, SIZE, SamplerRow

Float = NDArray[np.float32]
Int = NDArray[np.int32]
SamplerOutput = tuple[Int, NDArray[np.float64], Int]
"""Tokens, their log-probabilities in the softmax of the raw logits (zeros if not requested), and statuses [L]: 0 = a token was
chosen, 1 = the highest logit is not finite, or a penalty made it so, 2 = every token is excluded, 3 = a token of the context or
an excluded token is not in the vocabulary. An error in one row does not affect the others."""

NONE = np.empty(0, np.int32)
_NOWHERE = NONE.ctypes.data


class SamplerInput(Protocol):
    """How the token of a row is chosen.

    Attributes:
        context: Prompt and answer so far; read only if ``penalised``.
        generated: Number of answer tokens, the last ones of ``context``.
        excluded: Tokens that may not be chosen.
        sample: Draw a token; otherwise take the first of the highest scores.
        draw: A random number in [0, 1), drawn by the caller.
        temperature: Above 0.
        top_k: Keep tokens that reach the k-th highest score; 0 = all.
        top_p: Keep the most likely tokens that together reach this probability; 1 = all.
        min_p: Keep tokens with at least this fraction of the highest probability; 0 = all.
        repetition: Penalty of every token in the context; 1 = none.
        presence: Subtracted from the score of every token in the answer.
        frequency: Subtracted once per occurrence in the answer.
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


_FIELDS = tuple((name, np.dtype(kind).str) for name, kind in SamplerRow._fields_ if kind is not ctypes.c_void_p)
LAYOUT = np.dtype(
    {
        "names": [name for name, _ in _FIELDS],
        "formats": [form for _, form in _FIELDS],
        "offsets": [getattr(SamplerRow, name).offset for name, _ in _FIELDS],
        "itemsize": ctypes.sizeof(SamplerRow),
    }
)


class Sampler:
    """Chooses tokens from logits of one vocabulary size.

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
        self._kernel = found.kernel("choose", POINTER, POINTER, SIZE, SIZE, FLAG, POINTER, SIZE)
        self._rows = (SamplerRow * 1)()
        needed = ctypes.c_int64()
        found.kernel("choose_bytes", SIZE, POINTER)(vocab, ctypes.addressof(needed))
        self._buffer = np.zeros(needed.value // 8 + 1, np.float64)

    def choose(self, logits_LV: Float, inputs: Sequence[SamplerInput], logprobs: bool = False) -> SamplerOutput:
        """Chooses a token for each row.

        Args:
            logits_LV: Float32 and contiguous.
            inputs: One per row.
            logprobs: Whether to compute log-probabilities.

        Raises:
            ValueError: The logits have another shape or type.
        """
        rows = len(inputs)
        if logits_LV.shape != (rows, self.vocab) or logits_LV.dtype != np.float32 or not logits_LV.flags.c_contiguous:
            raise ValueError(
                f"logits are {logits_LV.dtype} {list(logits_LV.shape)}, not contiguous float32 [{rows}, {self.vocab}]"
            )
        if rows > len(self._rows):
            self._rows = (SamplerRow * max(rows, 2 * len(self._rows)))()
        held = [fill(row, given) for row, given in zip(self._rows, inputs, strict=False)]
        buffer = self._buffer.ctypes.data
        self._kernel(
            logits_LV.ctypes.data,
            ctypes.addressof(self._rows),
            rows,
            self.vocab,
            logprobs,
            buffer,
            self._buffer.nbytes,
        )
        del held  # keeps the arrays that the rows point to alive until here
        return read_output(self._rows, rows)


def read_output(structs: ctypes.Array[SamplerRow] | bytes, rows: int) -> SamplerOutput:
    """The results of the first ``rows`` structs."""
    found = np.frombuffer(structs, LAYOUT, rows)
    return found["token"].copy(), found["logprob"].copy(), found["status"].copy()


def fill(row: SamplerRow, given: SamplerInput) -> tuple[Int, Int]:
    """Fills the struct of a row; returns the arrays that it points to, which the caller must keep alive."""
    context = np.ascontiguousarray(given.context, np.int32) if given.penalised else NONE
    excluded = np.ascontiguousarray(given.excluded, np.int32) if len(given.excluded) else NONE
    row.context, row.context_count = _address(context), len(context)
    row.excluded, row.excluded_count = _address(excluded), len(excluded)
    row.generated, row.top_k = min(max(given.generated, 0), len(context)), given.top_k
    row.repetition, row.presence, row.frequency = given.repetition, given.presence, given.frequency
    row.temperature, row.top_p, row.min_p = given.temperature, given.top_p, given.min_p
    row.draw, row.sample = given.draw, given.sample
    row.token, row.logprob = -1, 0.0
    return context, excluded


def _address(tokens: Int) -> int:
    """Where an array is; numpy takes longer to say so than everything else here, and most rows have the same empty one."""
    return _NOWHERE if tokens is NONE else int(tokens.ctypes.data)

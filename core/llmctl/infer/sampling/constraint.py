"""What an answer may consist of, as a grammar says: which tokens may come next. No grammar is understood here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
"""A bit for each token, 32 in a word, the first in the lowest place; 1 = allowed."""

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDENDS = np.where(_BITS, np.float32(0), np.float32(-np.inf))
"""What is added to the logits of eight tokens, by their bits."""


class Matcher(Protocol):
    """One answer, from its first token on. For one thread."""

    def allowed(self) -> Words | None:
        """The tokens that may come next, among them end tokens where the answer may end; None = all of them.

        Raises:
            ConfigError: The grammar has become too complex.
        """

    def prepare(self) -> None:
        """Says that ``allowed`` is needed soon, so that it may be computed in another thread meanwhile, and that all tokens stay."""

    def accept(self, tokens: Sequence[int]) -> int:
        """Takes tokens up to the first that may not come; returns how many."""

    def undo(self, count: int) -> None:
        """Takes back the last tokens, of those since ``prepare``."""

    @property
    def complete(self) -> bool:
        """Whether nothing but an end may follow."""


class Constraint(Protocol):
    """A form of answers."""

    def matcher(self) -> Matcher:
        """A new answer's."""


def allow(logits_V: NDArray[np.float32], words: Words) -> NDArray[np.float32]:
    """Logits of which those of other tokens are minus infinity.

    Args:
        logits_V: Logits; they are not changed.
        words: Bits of at least V tokens.
    """
    # Comparing and copying would take ten times as long where allowed tokens lie among others.
    addends = np.take(_ADDENDS, words.view(np.uint8)[: -(-len(logits_V) // 8)], axis=0, mode="clip")
    return np.asarray(logits_V + addends.reshape(-1)[: len(logits_V)], np.float32)

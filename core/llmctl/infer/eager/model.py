"""What batch generation needs of a model: the family's paddle model (``layer``) or an exported program (``program``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Choose = Callable[[NDArray[Any]], NDArray[Any]]
"""What is taken from logits, such as the next token of each row."""


def as_it_is(logits: NDArray[Any]) -> NDArray[Any]:
    """The logits themselves."""
    return logits


class Session(Protocol):
    """Rows that are generated together, and their KV cache.

    Attributes:
        past: Positions in the cache, padding included; 0 = there are none yet, or no cache.
    """

    past: int

    def step(self, ids_BT: NDArray[np.int64], mask_BS: NDArray[np.int64], choose: Choose = as_it_is) -> NDArray[Any]:
        """What is chosen from the logits [B, V] after the last position.

        Args:
            ids_BT: Tokens of the new positions, padding included.
            mask_BS: 1 = token, 0 = padding, over past and new positions.
            choose: Gets the logits. Of ranks that compute a model together one calls it, and all return what it returns.
        """

    def all_logits(self, ids_BT: NDArray[np.int64], mask_BS: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits [B, T, V] after each new position; arguments as for ``step``."""

    def select(self, rows: list[int]) -> None:
        """Keeps these rows."""


class EagerModel(Protocol):
    """A model of batch generation.

    Attributes:
        max_stable_length: Longest rows whose cached keys stay valid; None = any.
    """

    max_stable_length: int | None

    def begin(self, max_length: int, use_cache: bool = True) -> Session:
        """A session for new rows.

        Args:
            max_length: Maximum number of positions of a row, padding included.
            use_cache: False: every step is given all tokens.
        """

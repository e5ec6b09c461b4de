"""What generation asks of a model, whoever computes it: the dynamic layer (``dynamic``) or a saved program (``static``)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Steps(Protocol):
    """Rows that are being answered together: the model with a cache of what they have seen.

    Attributes:
        past: Columns that the model has seen; 0 = the next step begins.
    """

    past: int

    def step(self, ids_BT: NDArray[np.int64], mask_BS: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits [B, V] after the last column.

        Args:
            ids_BT: Tokens that the model has not seen.
            mask_BS: 1 = real, 0 = padding, over past and new columns.
        """

    def columns(self, ids_BT: NDArray[np.int64], mask_BS: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits [B, T, V] after each new column; otherwise as ``step``."""

    def select(self, rows: list[int]) -> None:
        """Keeps these rows."""


class Model(Protocol):
    """Something that begins batches.

    Attributes:
        max_stable_length: Longest rows whose cached keys stay right; None = any.
    """

    max_stable_length: int | None

    def begin(self, columns: int, use_cache: bool = True) -> Steps:
        """A batch of new rows.

        Args:
            columns: Most columns that it will have.
            use_cache: False: every step is given all tokens.
        """

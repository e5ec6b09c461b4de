"""Cosines and sines of the angles that queries and keys are turned by, and the factors of queries: a row for each position.

Computed in float64 and held as float32. The tables grow as positions are reached. Letters: P positions, F pairs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec

FIRST = 256
"""Positions that the tables hold at least."""


class Turning:
    """The tables of a decoder.

    Args:
        graph: The decoder; without ``rope`` the tables are empty.

    Raises:
        ValueError: There are not as many frequencies as pairs.
    """

    def __init__(self, graph: DecoderSpec) -> None:
        self._rope = graph.rope
        self._rows = 0
        if graph.rope is not None:
            pairs = graph.rope.rotary_dim // (4 if graph.rope.pairs == "2d" else 2)
            if len(graph.rope.frequencies) != pairs or graph.rope.rotary_dim > graph.head_dim:
                raise ValueError(
                    f"{len(graph.rope.frequencies)} frequencies do not fit a width of {graph.rope.rotary_dim}"
                )

    def reach(self, position: int, most: int) -> None:
        """Makes sure that a position has its row, if it is below ``most``.

        Raises:
            ValueError: The frequencies do not hold for it.
        """
        if self._rope is None or position < self._rows:
            return
        stable = self._rope.max_stable_length
        if stable is not None and position >= stable:
            raise ValueError(f"position {position}: the model's frequencies hold for {stable} positions")
        # Not as far as a position goes that cannot be meant.
        rows = max(FIRST, 2 * self._rows, min(position + 1, most))
        rows = rows if stable is None else min(rows, stable)
        place_P = np.arange(rows, dtype=np.float64)
        angle_PF = np.outer(place_P, np.asarray(self._rope.frequencies, np.float64))
        self._cosine, self._sine = (np.ascontiguousarray(f(angle_PF), np.float32) for f in (np.cos, np.sin))
        self._scale = None
        if self._rope.log_base is not None:
            counted_P = np.maximum(place_P + 1, self._rope.log_base)
            self._scale = (np.log(counted_P) / math.log(self._rope.log_base)).astype(np.float32)
        self._rows = rows

    def fill(self, step: Any) -> None:
        """Puts the tables into the structure of a native step, ``llmctl_ops.structs.Step``."""
        step.angle_rows = self._rows
        if self._rope is not None:
            step.cosine, step.sine = self._cosine.ctypes.data, self._sine.ctypes.data
            step.query_scale = None if self._scale is None else self._scale.ctypes.data

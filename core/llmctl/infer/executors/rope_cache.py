"""RoPE cos/sin tables and the log-n query scale, one row per position.

Computed in float64 and held as float32. The tables grow with the positions that are used. Shape suffixes: P positions, F pairs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec

MIN_ROWS = 256
"""Minimum number of rows of the tables."""


class RopeCache:
    """The tables of a decoder.

    Args:
        spec: The decoder; without RoPE the tables are empty.

    Raises:
        ValueError: The number of frequencies does not fit ``rotary_dim``.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        self._rope = spec.rope
        self._rows = 0
        if spec.rope is not None:
            pairs = spec.rope.rotary_dim // (4 if spec.rope.pairs == "2d" else 2)
            if len(spec.rope.frequencies) != pairs or spec.rope.rotary_dim > spec.head_dim:
                raise ValueError(
                    f"{len(spec.rope.frequencies)} frequencies do not fit rotary_dim={spec.rope.rotary_dim} of heads of "
                    f"{spec.head_dim}"
                )

    def ensure(self, position: int, limit: int) -> None:
        """Grows the tables so that a position below ``limit`` has its row.

        Raises:
            ValueError: The frequencies are not valid for the position (RoPE scaling by length).
        """
        if self._rope is None or position < self._rows:
            return
        stable = self._rope.max_stable_length
        if stable is not None and position >= stable:
            raise ValueError(f"position {position}: the model's RoPE frequencies are valid for {stable} positions")
        # A position at or above the limit is refused by the kernel; the tables do not grow for it.
        rows = max(MIN_ROWS, 2 * self._rows, min(position + 1, limit))
        rows = rows if stable is None else min(rows, stable)
        position_P = np.arange(rows, dtype=np.float64)
        angle_PF = np.outer(position_P, np.asarray(self._rope.frequencies, np.float64))
        factor = self._rope.attention_factor
        self._cosine, self._sine = (np.ascontiguousarray(f(angle_PF) * factor, np.float32) for f in (np.cos, np.sin))
        self._scale = None
        if self._rope.log_base is not None:
            counted_P = np.maximum(position_P + 1, self._rope.log_base)
            self._scale = (np.log(counted_P) / math.log(self._rope.log_base)).astype(np.float32)
        self._rows = rows

    def fill(self, step: Any) -> None:
        """Puts the tables into a native step, ``llmctl_ops.structs.Step``."""
        step.angle_rows = self._rows
        if self._rope is not None:
            step.cosine, step.sine = self._cosine.ctypes.data, self._sine.ctypes.data
            step.query_scale = None if self._scale is None else self._scale.ctypes.data

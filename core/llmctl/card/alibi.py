"""Slopes of attention with linear biases: positions as a penalty on scores that grows with the distance.

A key's penalty is its slope times its place in its document; what differs from the distance to the query is the same for
all keys, and softmax does not see it.
"""

from __future__ import annotations

import math


def slopes(heads: int) -> list[float]:
    """The penalty per position of each head (https://arxiv.org/abs/2108.12409, section 3).

    A power of two gives the ladder 2^(-8/n), 2^(-16/n), ...; any other count takes the ladder of the power below it and
    then every other step of the ladder of the power above it.
    """
    below = 2 ** math.floor(math.log2(heads))
    ladder = [2.0 ** (-8 * i / below) for i in range(1, below + 1)]
    finer = [2.0 ** (-4 * i / below) for i in range(1, 2 * below + 1, 2)]
    return ladder + finer[: heads - below]

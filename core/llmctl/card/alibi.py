"""ALiBi slopes: attention biases that grow with the distance between query and key.

The bias of a key is its slope times its position in its document. It differs from slope times distance by a constant for
each query, which softmax ignores.
"""

from __future__ import annotations

import math


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head, per position (https://arxiv.org/abs/2108.12409, section 3).

    For a power of two: 2^(-8/n), 2^(-16/n), ... Any other count takes the slopes of the power of two below it, then every
    other slope of the power above it.
    """
    below = 2 ** math.floor(math.log2(heads))
    ladder = [2.0 ** (-8 * i / below) for i in range(1, below + 1)]
    finer = [2.0 ** (-4 * i / below) for i in range(1, 2 * below + 1, 2)]
    return ladder + finer[: heads - below]

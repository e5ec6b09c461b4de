"""Attention with linear biases: positions as a penalty on scores that grows with the distance.

Letters as in the package's docstring.
"""

from __future__ import annotations

import math

import paddle

from llmctl.nn.attention import causal_bias
from llmctl.nn.position import positions


def slopes(heads: int) -> list[float]:
    """The penalty per position of each head (https://arxiv.org/abs/2108.12409, section 3).

    A power of two gives the ladder 2^(-8/n), 2^(-16/n), ...; any other count takes the ladder of the power below it and
    then every other step of the ladder of the power above it.
    """
    below = 2 ** math.floor(math.log2(heads))
    ladder = [2.0 ** (-8 * i / below) for i in range(1, below + 1)]
    finer = [2.0 ** (-4 * i / below) for i in range(1, 2 * below + 1, 2)]
    return ladder + finer[: heads - below]


class AlibiBias:
    """``causal_bias`` plus the penalties: [B or 1, N, T, S].

    A key's penalty is its slope times its place among the real tokens of its row; what differs from the distance to the
    query is the same for all keys, and softmax does not see it.

    Args:
        heads: Number of query heads.
    """

    def __init__(self, heads: int) -> None:
        self.slopes = slopes(heads)

    def __call__(self, new: int, past: int, mask_BS: paddle.Tensor | None, dtype: str) -> paddle.Tensor:
        total = past + new
        place_BS = positions(total, 0, mask_BS).astype(dtype)
        slope_N1 = paddle.to_tensor(self.slopes, dtype=dtype).reshape([1, -1, 1, 1])
        penalty_BN1S = slope_N1 * place_BS.unsqueeze([1, 2])
        bias_B1TS = causal_bias(new, past, mask_BS, dtype)
        if bias_B1TS is None:
            return penalty_BN1S
        shape = [penalty_BN1S.shape[0], len(self.slopes), new, total]
        return penalty_BN1S.expand(shape) + bias_B1TS.expand(shape)

"""Normalisation layers. Statistics are computed in float32 or better, whatever the input's type."""

from __future__ import annotations

import paddle
from paddle.nn.initializer import Constant


class RMSNorm(paddle.nn.Layer):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (https://arxiv.org/abs/1910.07467).

    Args:
        hidden: Width of the last axis.
        eps: Added to the mean square.
    """

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.weight = self.create_parameter([hidden], default_initializer=Constant(1.0))
        self.eps = eps

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, eps: float) -> paddle.Tensor:
    """``RMSNorm`` as a function; the result has the type of x."""
    wide = x.astype("float32") if x.dtype in (paddle.float16, paddle.bfloat16) else x
    scale = paddle.rsqrt(paddle.mean(wide * wide, axis=-1, keepdim=True) + eps)
    return (wide * scale).astype(x.dtype) * weight

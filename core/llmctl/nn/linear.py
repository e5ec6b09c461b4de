"""A linear layer with paddle's weight layout [in, out]: the one that adapters, quantization and splits replace.

``paddle.nn.Linear`` takes three times as long per call on small inputs.
"""

from __future__ import annotations

import paddle
from paddle.nn.initializer import Constant, Normal

from llmctl.nn import kernels


class Linear(paddle.nn.Layer):
    """y = x W + b, with weights drawn from normal(0, std) and a zero bias.

    Args:
        inputs: Input features.
        outputs: Output features.
        bias: Whether there is a bias.
        std: Standard deviation of the initial weights.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False, std: float = 0.02) -> None:
        super().__init__()
        self.weight = self.create_parameter([inputs, outputs], default_initializer=Normal(0.0, std))
        self.bias = self.create_parameter([outputs], default_initializer=Constant(0.0)) if bias else None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = paddle.matmul(x, self.weight)
        if self.bias is None:
            return y
        fused = kernels.compiled("add_bias", y, self.bias)
        return y + self.bias if fused is None else fused(y, self.bias)

"""Feed-forward layers."""

from __future__ import annotations

import paddle

from llmctl.nn.linear import Linear


class GatedMLP(paddle.nn.Layer):
    """down(silu(gate(x)) * up(x)), known as SwiGLU (https://arxiv.org/abs/2002.05202).

    Args:
        hidden: Width of input and output.
        ffn: Width between.
        bias: Whether the three projections have biases.
        std: Standard deviation of the initial weights.
    """

    def __init__(self, hidden: int, ffn: int, bias: bool = False, std: float = 0.02) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, ffn, bias, std)
        self.up_proj = Linear(hidden, ffn, bias, std)
        self.down_proj = Linear(ffn, hidden, bias, std)

    def forward(self, x_BTD: paddle.Tensor) -> paddle.Tensor:
        return self.down_proj(gated(self.gate_proj(x_BTD), self.up_proj(x_BTD)))


def gated(gate: paddle.Tensor, up: paddle.Tensor) -> paddle.Tensor:
    """silu(gate) * up."""
    return paddle.nn.functional.silu(gate) * up

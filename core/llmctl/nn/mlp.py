"""Feed-forward layers; mixtures of experts are in ``moe``."""

from __future__ import annotations

from collections.abc import Callable

import paddle

from llmctl.nn import kernels
from llmctl.nn.linear import Linear


class GatedMLP(paddle.nn.Layer):
    """down(silu(gate(x)) * up(x)), known as SwiGLU (https://arxiv.org/abs/2002.05202).

    Args:
        hidden: Hidden size.
        ffn: Intermediate size.
        bias: Whether the three projections have biases.
        std: Standard deviation of the initial weights.
        names: Names of gate, up and down in the state dict.
    """

    def __init__(
        self,
        hidden: int,
        ffn: int,
        bias: bool = False,
        std: float = 0.02,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        super().__init__()
        self._names = names
        for name, widths in zip(names, ((hidden, ffn), (hidden, ffn), (ffn, hidden)), strict=True):
            self.add_sublayer(name, Linear(*widths, bias, std))

    def forward(self, x_BTD: paddle.Tensor) -> paddle.Tensor:
        gate, up, down = (getattr(self, name) for name in self._names)
        return down(swiglu(gate(x_BTD), up(x_BTD)))


class PackedGatedMLP(paddle.nn.Layer):
    """``GatedMLP`` without biases, with gate and up concatenated in one projection.

    Args:
        hidden: Hidden size.
        ffn: Intermediate size.
        names: Names of the two projections in the state dict.
        std: Standard deviation of the initial weights.
    """

    def __init__(self, hidden: int, ffn: int, names: tuple[str, str], std: float = 0.02) -> None:
        super().__init__()
        self._names = names
        self.add_sublayer(names[0], Linear(hidden, 2 * ffn, std=std))
        self.add_sublayer(names[1], Linear(ffn, hidden, std=std))

    def forward(self, x_BTD: paddle.Tensor) -> paddle.Tensor:
        up, down = (getattr(self, name) for name in self._names)
        return down(swiglu(up(x_BTD)))


def swiglu(gate: paddle.Tensor, up: paddle.Tensor | None = None) -> paddle.Tensor:
    """silu(gate) * up; without ``up`` the last axis of ``gate`` holds both, concatenated."""
    fused = kernels.compiled("swiglu", gate)
    if fused is not None:
        return fused(gate, up)
    if up is None:
        gate, up = paddle.split(gate, 2, axis=-1)
    return paddle.nn.functional.silu(gate) * up


class MLP(paddle.nn.Layer):
    """down(activation(up(x))).

    Args:
        hidden: Hidden size.
        ffn: Intermediate size.
        activation: Between the projections.
        names: Names of the two projections in the state dict.
        std: Standard deviation of the initial weights.
        bias: Whether the two projections have biases.
    """

    def __init__(
        self,
        hidden: int,
        ffn: int,
        activation: Callable[[paddle.Tensor], paddle.Tensor],
        names: tuple[str, str],
        std: float = 0.02,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self._names, self._activation = names, activation
        self.add_sublayer(names[0], Linear(hidden, ffn, bias, std))
        self.add_sublayer(names[1], Linear(ffn, hidden, bias, std))

    def forward(self, x_BTD: paddle.Tensor) -> paddle.Tensor:
        up, down = (getattr(self, name) for name in self._names)
        return down(self._activation(up(x_BTD)))


def gelu_tanh(x: paddle.Tensor) -> paddle.Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    fused = kernels.compiled("gelu_tanh", x)
    return paddle.nn.functional.gelu(x, approximate=True) if fused is None else fused(x)

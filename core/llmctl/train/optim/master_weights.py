"""Float32 weights that move in the place of parameters in half types, which are them rounded.

An update is often smaller than what a half type can tell apart (https://arxiv.org/abs/1710.03740, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import paddle

HALF = (paddle.float16, paddle.bfloat16)


class Masters:
    """The tensors that an update moves.

    Args:
        parameters: Name -> parameter.

    Attributes:
        tensors: Name -> the parameter, or its float32 copy where its type is a half one.
    """

    def __init__(self, parameters: Mapping[str, paddle.Tensor]) -> None:
        self._half = {name: p for name, p in parameters.items() if p.dtype in HALF}
        self.tensors = {name: _copy(p) if name in self._half else p for name, p in parameters.items()}

    @paddle.no_grad()
    def gather(self) -> None:
        """Adds the gradients of half parameters to those of their copies, and drops them."""
        for name, parameter in self._half.items():
            if parameter.grad is None:
                continue
            copy, grad = self.tensors[name], parameter.grad.astype("float32")
            copy.grad = grad if copy.grad is None else copy.grad + grad
            parameter.clear_gradient(False)

    @paddle.no_grad()
    def round(self) -> None:
        """Makes the half parameters what their copies are."""
        for name, parameter in self._half.items():
            parameter.set_value(self.tensors[name].astype(parameter.dtype))


def _copy(parameter: paddle.Tensor) -> paddle.Tensor:
    value = paddle.nn.initializer.Assign(parameter.detach().astype("float32"))
    return paddle.create_parameter(parameter.shape, "float32", default_initializer=value)

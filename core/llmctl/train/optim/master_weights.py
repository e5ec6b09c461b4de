"""FP32 master weights. The optimizer updates these; the fp16/bf16 parameters are rounded copies.

An update is often smaller than the precision of a half type (https://arxiv.org/abs/1710.03740, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import paddle

HALF = (paddle.float16, paddle.bfloat16)


class MasterWeights:
    """The tensors that the optimizer updates.

    Args:
        parameters: Name -> parameter.

    Attributes:
        tensors: Name -> the FP32 master weight of a parameter in a half type; other parameters themselves.
    """

    def __init__(self, parameters: Mapping[str, paddle.Tensor]) -> None:
        self._half = {name: p for name, p in parameters.items() if p.dtype in HALF}
        self.tensors = {name: _fp32(p) if name in self._half else p for name, p in parameters.items()}

    @paddle.no_grad()
    def accumulate_grads(self) -> None:
        """Adds the gradients of half parameters to those of their master weights, in FP32, and clears them."""
        for name, parameter in self._half.items():
            if parameter.grad is None:
                continue
            master, grad = self.tensors[name], parameter.grad.astype("float32")
            master.grad = grad if master.grad is None else master.grad + grad
            parameter.clear_gradient(False)

    @paddle.no_grad()
    def copy_to_model(self) -> None:
        """Rounds the master weights into the half parameters."""
        for name, parameter in self._half.items():
            parameter.set_value(self.tensors[name].astype(parameter.dtype))


def _fp32(parameter: paddle.Tensor) -> paddle.Tensor:
    value = paddle.nn.initializer.Assign(parameter.detach().astype("float32"))
    return paddle.create_parameter(parameter.shape, "float32", default_initializer=value)

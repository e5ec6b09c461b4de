"""CPU offload (``parallel.offload``): what the optimizer keeps in main memory while the model is on a device."""

from __future__ import annotations

import math

import numpy as np
import paddle


@paddle.no_grad()
def in_main_memory(tensor: paddle.Tensor) -> paddle.Tensor:
    """A copy in main memory, also of what is there already."""
    return tensor.detach()._copy_to(paddle.CPUPlace(), True)


class Offloaded:
    """A weight in main memory, whose gradient is on the device; other code uses it as a tensor of the device.

    Args:
        tensor: The weight, on the device.

    Attributes:
        value: The weight, in main memory.
        grad: Its gradient, on the device; None = it has none.
        shape: Sizes of the axes.
        dtype: Type of the weight.
        size: Number of elements.
    """

    def __init__(self, tensor: paddle.Tensor) -> None:
        self.value, self._place = in_main_memory(tensor), tensor.place
        self.grad: paddle.Tensor | None = None
        self.shape, self.dtype, self.size = list(tensor.shape), tensor.dtype, math.prod(tensor.shape)

    def element_size(self) -> int:
        """Bytes of an element."""
        return int(self.value.element_size())

    @paddle.no_grad()
    def astype(self, dtype: paddle.dtype) -> paddle.Tensor:
        """A copy of the weight on the device, in a type."""
        return self.value.astype(dtype)._copy_to(self._place, True)

    def detach(self) -> paddle.Tensor:
        """A copy of the weight on the device."""
        return self.astype(self.dtype)

    def numpy(self) -> np.ndarray:
        """The weight."""
        return np.array(self.value.numpy())

    def set_value(self, value: paddle.Tensor) -> None:
        """Sets the weight."""
        self.value = in_main_memory(value)

    def clear_gradient(self, set_to_zero: bool = True) -> None:
        """Drops the gradient."""
        self.grad = None

"""A parameter divided among ranks into slices of one length, whatever its shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import paddle


@dataclass(frozen=True)
class Slicing:
    """How a parameter is divided into slices of one length; the last one is filled up with zeros.

    Attributes:
        shape: Of the parameter.
        count: Number of slices.
    """

    shape: tuple[int, ...]
    count: int

    @property
    def size(self) -> int:
        """Elements of the parameter."""
        return math.prod(self.shape)

    @property
    def length(self) -> int:
        """Elements of a slice."""
        return -(-self.size // self.count)

    def rows(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """All slices, [count, length]."""
        flat = tensor.reshape([-1])
        missing = self.length * self.count - self.size
        if missing:
            flat = paddle.concat([flat, paddle.zeros([missing], flat.dtype)])
        return flat.reshape([self.count, self.length])

    def whole(self, rows: paddle.Tensor) -> paddle.Tensor:
        """The parameter, from all slices."""
        return rows.reshape([-1])[: self.size].reshape(self.shape)

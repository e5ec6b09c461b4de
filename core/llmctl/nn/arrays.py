"""Tensors as numpy arrays of numbers; numpy has no bfloat16."""

from __future__ import annotations

import numpy as np
import paddle


def values(tensor: paddle.Tensor) -> np.ndarray:
    """The values, in float32 where the tensor's type is a half one."""
    half = tensor.dtype in (paddle.float16, paddle.bfloat16)
    return np.asarray((tensor.astype("float32") if half else tensor).numpy())


def put(parameter: paddle.Tensor, array: np.ndarray) -> None:
    """Sets a parameter, rounding to its type."""
    parameter.set_value(paddle.to_tensor(array).astype(parameter.dtype))

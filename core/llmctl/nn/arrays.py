"""Between tensors and numpy arrays; numpy has no bfloat16."""

from __future__ import annotations

import numpy as np
import paddle


def to_numpy(tensor: paddle.Tensor) -> np.ndarray:
    """The values; fp16 and bf16 tensors become float32."""
    half = tensor.dtype in (paddle.float16, paddle.bfloat16)
    return np.asarray((tensor.astype("float32") if half else tensor).numpy())


def assign(parameter: paddle.Tensor, array: np.ndarray) -> None:
    """Sets a parameter to an array, rounded to the parameter's dtype."""
    parameter.set_value(paddle.to_tensor(array).astype(parameter.dtype))

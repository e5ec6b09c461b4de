"""Calling kernels on tensors: which tensors they take, the pointers they get, and what a failure means."""

from __future__ import annotations

import ctypes

import paddle

from llmctl_ops import library

FLOAT32 = paddle.float32
POINTER, SIZE, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def fits(*tensors: paddle.Tensor) -> bool:
    """Whether there are kernels for these tensors: float32, in main memory, and not a program that is being traced."""
    if library.load().handle is None or not paddle.in_dynamic_mode():
        return False
    for tensor in tensors:
        dtype = tensor.dtype
        # Comparing types takes five times as long as finding that they are one object.
        if not ((dtype is FLOAT32 or dtype == FLOAT32) and tensor.place.is_cpu_place()):
            return False
    return True


def wanted(*tensors: paddle.Tensor) -> bool:
    """Whether a gradient of any of these tensors is wanted."""
    return paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in tensors)


def pointer(tensor: paddle.Tensor | None) -> int | None:
    """The address of the first element; None for no tensor or no elements."""
    return tensor.data_ptr() if tensor is not None and 0 not in tensor.shape else None


def done(status: int) -> None:
    """Checks what a kernel returned.

    Raises:
        MemoryError: It had no memory for its buffers.
    """
    if status:
        raise MemoryError("a kernel of llmctl-ops could not allocate its buffers")

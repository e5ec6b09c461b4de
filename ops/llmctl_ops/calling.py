"""Calling kernels on tensors: which tensors they take, how tensors enter them, and what a failure means."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import paddle

from llmctl_ops import library

FLOAT32 = paddle.float32
POINTER, SIZE, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
NO_MEMORY = 1
"""Status of a kernel that could not allocate its buffers; every kernel has it."""


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


def call(
    name: str,
    inputs: Sequence[paddle.Tensor | int | None],
    outputs: Sequence[paddle.Tensor | int | None],
    sizes: Sequence[int],
    factors: Sequence[float] = (),
) -> int:
    """Runs a kernel, which takes the addresses of its inputs and outputs, then its sizes, then its factors.

    Args:
        name: The kernel, without its instruction set.
        inputs: Tensors with any strides; what is not contiguous is copied here, as kernels read memory in order. An integer
            is an address, None is null.
        outputs: Contiguous tensors that the kernel writes, or addresses, or None.
        sizes: Passed as int64.
        factors: Passed as float32.

    Returns:
        The kernel's status; 0 = done.

    Raises:
        MemoryError: It had no memory for its buffers.
    """
    arrays = [*(x.contiguous() if isinstance(x, paddle.Tensor) else x for x in inputs), *outputs]
    kernel = library.load().kernel(name)
    if kernel.argtypes is None:
        kernel.argtypes = [*[POINTER] * len(arrays), *[SIZE] * len(sizes), *[FLOAT] * len(factors)]
    status = kernel(*(x.data_ptr() if isinstance(x, paddle.Tensor) else x for x in arrays), *sizes, *factors)
    if status == NO_MEMORY:
        raise MemoryError(f"the kernel {name} of llmctl-ops could not allocate its buffers")
    return status

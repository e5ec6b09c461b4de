"""Calls kernels on tensors: which tensors they take, how these are passed, and what a failure means."""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from llmctl_ops import library
from llmctl_ops.structs import FLOAT, POINTER, SIZE

FLOAT32 = paddle.float32
NO_MEMORY = 1
"""Status of a kernel that could not allocate its buffers, the same for all kernels."""


def fits(*tensors: paddle.Tensor) -> bool:
    """Whether there are kernels for these tensors: float32, in main memory, and not in a program being traced."""
    if library.load().handle is None or not paddle.in_dynamic_mode():
        return False
    for tensor in tensors:
        dtype = tensor.dtype
        # Comparing dtypes takes five times as long as an identity check.
        if not ((dtype is FLOAT32 or dtype == FLOAT32) and tensor.place.is_cpu_place()):
            return False
    return True


def needs_grad(*tensors: paddle.Tensor) -> bool:
    """Whether any of these tensors needs a gradient."""
    return paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in tensors)


def call(
    name: str,
    inputs: Sequence[paddle.Tensor | None],
    outputs: Sequence[paddle.Tensor | None],
    sizes: Sequence[int],
    factors: Sequence[float] = (),
) -> int:
    """Runs a kernel, which takes the addresses of its inputs and outputs, then its sizes, then its factors.

    Args:
        name: The kernel, without the suffix of its instruction set.
        inputs: Tensors with any strides: a tensor that is not contiguous is copied here, as kernels ignore strides. None =
            null.
        outputs: Contiguous tensors that the kernel writes; None = null.
        sizes: Passed as int64.
        factors: Passed as float32.

    Returns:
        The kernel's status; 0 = done.

    Raises:
        MemoryError: No memory for its buffers.
    """
    tensors = [*(x if x is None else x.contiguous() for x in inputs), *outputs]
    kernel = library.load().kernel(name)
    if kernel.argtypes is None:
        kernel.argtypes = [*[POINTER] * len(tensors), *[SIZE] * len(sizes), *[FLOAT] * len(factors)]
    status = kernel(*(x if x is None else x.data_ptr() for x in tensors), *sizes, *factors)
    if status == NO_MEMORY:
        raise MemoryError(f"the kernel {name} of paddle-llmctl-ops could not allocate its buffers")
    return status

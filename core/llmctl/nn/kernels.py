"""The compiled operators of the optional distribution ``paddle-llmctl-ops``; without it blocks use paddle's operations.

``LLMCTL_OPS=reference`` disables compiled operators; ``llmctl ops doctor`` says which are in use and why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import paddle


def compiled(name: str, *tensors: paddle.Tensor) -> Callable | None:
    """The compiled operator of this name, or None if there is none for these tensors.

    Compiled operators take float32 tensors in main memory, outside of traced programs.
    """
    ops = _distribution()
    return getattr(ops, name, None) if ops is not None and ops.fits(*tensors) else None


@functools.cache
def _distribution() -> ModuleType | None:
    try:
        import llmctl_ops
    except ImportError:
        return None
    return llmctl_ops

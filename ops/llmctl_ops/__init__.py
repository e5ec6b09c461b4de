"""Compiled operators for training and inference of language models on the CPU.

Each operator takes paddle tensors and has a reference implementation in ``reference``, which is used for types other than
float32, for other devices, for programs being traced, and if there is no compiled library (``llmctl ops doctor`` says why).

Operators are imported on first use: ``decoder``, ``linear``, ``sampling`` and ``library`` do not need paddle.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "adamw": "optimizer",
    "add_bias": "bias",
    "attention": "flash_attention",
    "cross_entropy": "loss",
    "fits": "calling",
    "gelu_tanh": "activation",
    "layer_norm": "norm",
    "rms_norm": "norm",
    "rope": "rotary",
    "sum_squares": "optimizer",
    "swiglu": "gate",
}
"""Operator -> its module."""

__all__ = list(_MODULES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value

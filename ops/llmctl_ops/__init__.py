"""Operators for training and running language models on the CPU, compiled where they can be.

Each takes paddle tensors and has a twin in ``reference`` that it stands for: for types other than float32, for other
devices, for programs being traced, and where there is no compiled library (``llmctl ops doctor`` says why).

Nothing is imported before it is asked for: ``decoder``, ``linear``, ``sampling`` and ``library`` work without paddle.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "adamw": "optimizer",
    "add_bias": "bias",
    "attention": "masked",
    "cross_entropy": "loss",
    "fits": "calling",
    "gelu_tanh": "activation",
    "layer_norm": "norm",
    "rms_norm": "norm",
    "rope": "rotary",
    "sum_squares": "optimizer",
    "swiglu": "gate",
}
"""Operator -> the module that has it."""

__all__ = list(_MODULES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value

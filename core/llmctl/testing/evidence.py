"""What tests of families have in common: how exact float64 must be, and which column of the matrix a test proves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

EXACT = 1e-9

KEY_BIAS = "qkv_bias.1"
"""Slot of a tensor that softmax may not see: what is added to all scores of a query alike has no gradient."""


def proves(method: str) -> Callable[[Any], Any]:
    """Marks a test as evidence for a column of the support matrix."""

    def mark(test: Any) -> Any:
        test.llmctl_proves = method
        return test

    return mark

"""Shared by the conformance tests: the tolerance in float64, and which column of the matrix a test proves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

EXACT = 1e-9

KEY_BIAS = "qkv_bias.1"
"""Slot of a tensor whose gradient may be 0: softmax ignores what is added to all scores of a query."""


def proves(method: str) -> Callable[[Any], Any]:
    """Marks a test as evidence for a column of the support matrix."""

    def mark(test: Any) -> Any:
        test.llmctl_proves = method
        return test

    return mark

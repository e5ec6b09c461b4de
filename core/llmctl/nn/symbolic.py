"""Sizes of axes, also in a program that is being traced, where some are known only when it runs.

Traced tensors have -1 there, which ``expand`` takes as "as it is"; where a number is needed it is a tensor of the program.
"""

from __future__ import annotations

from typing import Any

import paddle


def size(x: paddle.Tensor, axis: int) -> Any:
    """The size of an axis: a whole number, or a tensor if it is known only when the program runs."""
    known = x.shape[axis]
    return known if known >= 0 else paddle.shape(x)[axis].astype("int32")


def common(*sizes: int) -> int:
    """The size of an axis of which some tensors have one row for all; -1 where one of them is not known."""
    return -1 if min(sizes) < 0 else max(sizes)

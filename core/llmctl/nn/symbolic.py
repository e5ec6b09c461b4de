"""Sizes of axes that also work while a program is traced, when some are known only at run time.

Traced tensors have -1 for those, which ``expand`` reads as "unchanged"; a size as a number is then a tensor of the program.
"""

from __future__ import annotations

from typing import Any

import paddle


def size(x: paddle.Tensor, axis: int) -> Any:
    """The size of an axis: an integer, or a tensor if it is known only at run time."""
    known = x.shape[axis]
    return known if known >= 0 else paddle.shape(x)[axis].astype("int32")


def broadcast_size(*sizes: int) -> int:
    """The size of an axis after broadcasting these sizes; -1 if one of them is unknown."""
    return -1 if min(sizes) < 0 else max(sizes)

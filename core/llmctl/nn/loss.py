"""The loss over tokens. Which positions count, and by what the sum is divided, is decided in ``train``."""

from __future__ import annotations

import paddle


def token_loss(logits_NV: paddle.Tensor, labels_N: paddle.Tensor) -> paddle.Tensor:
    """Sum of the cross entropies of N tokens, a scalar; labels are token ids, all of which count.

    On the CPU paddle reports at most 64 for a single token; gradients are not affected.
    """
    return paddle.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")

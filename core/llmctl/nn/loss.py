"""The loss over tokens. Which positions count, and by what the sum is divided, is decided in ``train``."""

from __future__ import annotations

import paddle

from llmctl.nn import kernels


def token_loss(logits_NV: paddle.Tensor, labels_N: paddle.Tensor) -> paddle.Tensor:
    """Sum of the cross entropies of N tokens, a scalar; labels are token ids, all of which count.

    Without compiled operators paddle reports at most 64 for a single token on the CPU; gradients are not affected.
    """
    fused = kernels.compiled("cross_entropy", logits_NV)
    if fused is not None:
        return fused(logits_NV, labels_N)
    return paddle.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")

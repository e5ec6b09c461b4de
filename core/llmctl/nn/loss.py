"""The loss over tokens. Which positions count, and by what the sum is divided, is decided in ``train``."""

from __future__ import annotations

import paddle

from llmctl.nn import kernels

CAP = 60.0
"""Losses of a token from here on are computed apart, since paddle's cross entropy ends at 64 on the CPU."""


def token_loss(logits_NV: paddle.Tensor, labels_N: paddle.Tensor, overwrite: bool = False) -> paddle.Tensor:
    """Sum of the cross entropies of N tokens, a scalar; labels are token ids, all of which count.

    Without compiled operators paddle reports at most 64 for a single token on the CPU; gradients are not affected.

    Args:
        logits_NV: Scores of the vocabulary.
        labels_N: Token ids.
        overwrite: Nobody reads the logits after the backward pass, which may put their gradient in their place.
    """
    logits_NV = _wide(logits_NV)
    fused = kernels.compiled("cross_entropy", logits_NV)
    if fused is not None:
        return fused(logits_NV, labels_N, overwrite)
    return paddle.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")


def token_log_probs(logits_NV: paddle.Tensor, labels_N: paddle.Tensor) -> paddle.Tensor:
    """Log-probability of each of N tokens [N], in nats."""
    logits_NV = _wide(logits_NV)
    loss_N = paddle.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none").reshape([-1])
    if float(loss_N.max()) < CAP:
        return -loss_N
    chosen_N = paddle.take_along_axis(logits_NV, labels_N.reshape([-1, 1]), axis=1).reshape([-1])
    return chosen_N - paddle.logsumexp(logits_NV, axis=1)


def _wide(logits: paddle.Tensor) -> paddle.Tensor:
    """Logits in float32 where they are in a half type, in which a sum over tokens overflows."""
    return logits.astype("float32") if logits.dtype in (paddle.float16, paddle.bfloat16) else logits

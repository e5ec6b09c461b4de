"""Cross entropy of tokens. Which positions count, and the denominator, is decided in ``train``."""

from __future__ import annotations

import paddle

from llmctl.nn import kernels

CAP = 60.0
"""Token losses from here on are recomputed, since paddle's cross entropy saturates at 64 on the CPU."""


def token_loss(logits_NV: paddle.Tensor, labels_N: paddle.Tensor, overwrite: bool = False) -> paddle.Tensor:
    """Sum of the cross entropies of N tokens, a scalar.

    Without compiled operators paddle reports at most 64 for a single token on the CPU; gradients are not affected.

    Args:
        logits_NV: Logits over the vocabulary.
        labels_N: Token ids; all of them count.
        overwrite: Whether the backward pass may overwrite the logits with their gradient.
    """
    logits_NV = wide(logits_NV)
    fused = kernels.compiled("cross_entropy", logits_NV)
    if fused is not None:
        return fused(logits_NV, labels_N, overwrite)
    return paddle.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")


def token_log_probs(logits_NV: paddle.Tensor, labels_N: paddle.Tensor) -> paddle.Tensor:
    """Log-probability of each of N tokens [N], in nats."""
    logits_NV = wide(logits_NV)
    loss_N = paddle.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none").reshape([-1])
    if float(loss_N.max()) < CAP:
        return -loss_N
    chosen_N = paddle.take_along_axis(logits_NV, labels_N.reshape([-1, 1]), axis=1).reshape([-1])
    return chosen_N - paddle.logsumexp(logits_NV, axis=1)


def wide(logits: paddle.Tensor) -> paddle.Tensor:
    """Logits in float32 if they are fp16 or bf16, in which a sum over tokens overflows."""
    return logits.astype("float32") if logits.dtype in (paddle.float16, paddle.bfloat16) else logits

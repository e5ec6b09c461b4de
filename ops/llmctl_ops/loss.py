"""Cross entropy of tokens; differentiable in the logits."""

from __future__ import annotations

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits, wanted

_BAD_LABEL = 2


def cross_entropy(logits_NV: paddle.Tensor, labels_N: paddle.Tensor, overwrite: bool = False) -> paddle.Tensor:
    """Sum of log(sum(exp(row))) - row[label] over the rows, a scalar. Between the passes it keeps N numbers.

    Args:
        logits_NV: Scores of the vocabulary.
        labels_N: The right tokens, int64.
        overwrite: The logits are read by nobody else: the backward pass may write their gradient in their place, which
            saves a tensor of their size.

    Raises:
        ValueError: The shapes do not fit, or a label is none of 0 .. V - 1.
    """
    if logits_NV.ndim != 2 or labels_N.shape != logits_NV.shape[:1] or labels_N.dtype != paddle.int64:
        raise ValueError(
            f"cross_entropy needs logits [N, V] and int64 labels [N], not {logits_NV.shape} and "
            f"{labels_N.dtype} {labels_N.shape}"
        )
    if not fits(logits_NV) or logits_NV.shape[1] == 0:
        return reference.cross_entropy(logits_NV, labels_N)
    if wanted(logits_NV):
        return _CrossEntropy.apply(logits_NV, labels_N, overwrite)
    return _forward(logits_NV, labels_N)[0]


class _CrossEntropy(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, logits, labels, overwrite):
        ctx.overwrite = overwrite
        logits = logits.contiguous()  # the backward pass may write to it
        total, log_sum = _forward(logits, labels)
        ctx.save_for_backward(logits, labels, log_sum)
        return total

    @staticmethod
    def backward(ctx, grad):
        logits, labels, log_sum = ctx.saved_tensor()
        grad_logits = logits.detach() if ctx.overwrite else paddle.empty_like(logits)
        call("cross_entropy_backward", (logits, labels, log_sum), (grad_logits,), logits.shape, (float(grad),))
        return grad_logits, None


def _forward(logits: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    losses, log_sum = (paddle.empty([logits.shape[0]], "float32") for _ in range(2))
    if call("cross_entropy_forward", (logits, labels), (losses, log_sum), logits.shape) == _BAD_LABEL:
        raise ValueError(f"a label is outside of 0 .. {logits.shape[1] - 1}")
    return losses.astype("float64").sum().astype("float32"), log_sum

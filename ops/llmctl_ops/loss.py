"""Cross entropy; differentiable in the logits."""

from __future__ import annotations

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits, needs_grad

_BAD_LABEL = 2


def cross_entropy(logits_NV: paddle.Tensor, labels_N: paddle.Tensor, overwrite: bool = False) -> paddle.Tensor:
    """Sum over the rows of log(sum(exp(row))) - row[label], a scalar. Saves only N numbers for the backward pass.

    Args:
        logits_NV: Logits.
        labels_N: Target tokens, int64.
        overwrite: Nothing else reads the logits, so the backward pass may write their gradient over them, which saves a
            tensor of their size.

    Raises:
        ValueError: The shapes do not fit, or a label is outside 0 .. V - 1.
    """
    if logits_NV.ndim != 2 or labels_N.shape != logits_NV.shape[:1] or labels_N.dtype != paddle.int64:
        raise ValueError(
            f"cross_entropy needs logits [N, V] and int64 labels [N], not {logits_NV.shape} and "
            f"{labels_N.dtype} {labels_N.shape}"
        )
    if not fits(logits_NV) or logits_NV.shape[1] == 0:
        return reference.cross_entropy(logits_NV, labels_N)
    if needs_grad(logits_NV):
        return _CrossEntropy.apply(logits_NV, labels_N, overwrite)
    return _forward(logits_NV, labels_N)[0]


class _CrossEntropy(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, logits, labels, overwrite):
        ctx.overwrite = overwrite
        logits = logits.contiguous()  # the backward pass may write to it
        total, lse = _forward(logits, labels)
        ctx.save_for_backward(logits, labels, lse)
        return total

    @staticmethod
    def backward(ctx, grad):
        logits, labels, lse = ctx.saved_tensor()
        grad_logits = logits.detach() if ctx.overwrite else paddle.empty_like(logits)
        call("cross_entropy_backward", (logits, labels, lse), (grad_logits,), logits.shape, (float(grad),))
        return grad_logits, None


def _forward(logits: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    losses, lse = (paddle.empty([logits.shape[0]], "float32") for _ in range(2))
    if call("cross_entropy_forward", (logits, labels), (losses, lse), logits.shape) == _BAD_LABEL:
        raise ValueError(f"a label is outside 0 .. {logits.shape[1] - 1}")
    return losses.astype("float64").sum().astype("float32"), lse

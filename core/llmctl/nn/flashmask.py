"""Attention on GPUs with paddle's FlashMask kernel, which skips tiles that are masked out.

https://arxiv.org/abs/2410.01359. The kernel takes fp16 and bf16, no ALiBi, and head widths up to 256 that are multiples
of 8, on GPUs of compute capability 8.0 or above. Shape suffixes as in the package's docstring.
"""

from __future__ import annotations

import paddle

from llmctl.nn.mask import Mask

HALF = (paddle.float16, paddle.bfloat16)
MIN_CAPABILITY, MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 8, 256, 8
"""Limits of the kernel; the compute capability is its major number."""


def fits(q_BTNH: paddle.Tensor, mask: Mask | None, dropout: float) -> bool:
    """Whether the kernel can compute this here; traced programs must run on any device."""
    if not paddle.in_dynamic_mode():
        return False
    width = q_BTNH.shape[-1]
    expressible = mask is not None and mask.new > 1 and not mask.slopes and not dropout
    return bool(
        expressible
        and width <= MAX_HEAD_DIM
        and width % HEAD_DIM_MULTIPLE == 0
        and _compute_dtype(q_BTNH) in HALF
        and _on_capable_gpu(q_BTNH)
    )


def attend(q_BTNH: paddle.Tensor, k_BSKH: paddle.Tensor, v_BSKH: paddle.Tensor, mask: Mask) -> paddle.Tensor:
    """As ``attention.attend``; the output of a query that attends to nothing is undefined."""
    dtype = _compute_dtype(q_BTNH)
    q, k, v = (x if x.dtype == dtype else x.astype(dtype) for x in (q_BTNH, k_BSKH, v_BSKH))
    rows_BKSI, causal = rows(mask, q.shape[0])
    mixed_BTNH = paddle.nn.functional.flashmask_attention(q, k, v, rows_BKSI, causal=causal)
    return mixed_BTNH.reshape([0, 0, -1])


def rows(mask: Mask, batch: int) -> tuple[paddle.Tensor, bool]:
    """The mask in the kernel's form, for a batch size, and whether the kernel adds causal order.

    Query rows count from the first new one. Causal: one bound per key [B, 1, S, 1], the row from which on it is masked.
    Otherwise two [B, 1, S, 2], the second the first row that attends to it.
    """
    causal = mask.causal and not mask.past
    bounds = [mask.last_BS] if causal else [mask.last_BS, mask.first_BS]
    rows_BSI = paddle.stack(bounds, axis=-1).astype("int32") - mask.past
    rows_BSI = rows_BSI.clip(min=0, max=mask.new)
    return rows_BSI.expand([batch, *rows_BSI.shape[1:]]).unsqueeze(1), causal


def _compute_dtype(x: paddle.Tensor) -> paddle.dtype:
    """The dtype of matrix products with this tensor, autocast included."""
    return getattr(paddle, paddle.get_autocast_dtype()) if paddle.is_autocast_enabled() else x.dtype


def _on_capable_gpu(x: paddle.Tensor) -> bool:
    return bool(x.place.is_gpu_place()) and paddle.device.cuda.get_device_capability()[0] >= MIN_CAPABILITY

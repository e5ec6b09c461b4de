"""Attention on GPUs by paddle's FlashMask, which takes a mask as rows per key and skips tiles that nobody sees.

https://arxiv.org/abs/2410.01359. The kernel takes half types, no penalties by distance and heads of up to 256 elements in
steps of 8, on GPUs from compute capability 8.0 on. Letters as in the package's docstring.
"""

from __future__ import annotations

import paddle

from llmctl.nn.mask import Mask

HALF = (paddle.float16, paddle.bfloat16)
NEEDED, WIDEST, STEP = 8, 256, 8
"""Of the kernel: the least major compute capability, the widest heads, and what their width is a multiple of."""


def fits(q_BTNH: paddle.Tensor, mask: Mask | None, dropout: float) -> bool:
    """Whether the kernel can compute this here; programs that are being traced are to run anywhere."""
    if not paddle.in_dynamic_mode():
        return False
    width = q_BTNH.shape[-1]
    expressible = mask is not None and mask.new > 1 and not mask.slopes and not dropout
    return bool(expressible and width <= WIDEST and width % STEP == 0 and _computed(q_BTNH) in HALF and _served(q_BTNH))


def attend(q_BTNH: paddle.Tensor, k_BSKH: paddle.Tensor, v_BSKH: paddle.Tensor, mask: Mask) -> paddle.Tensor:
    """As ``attention.attend``; what a query that sees nothing gives is not defined."""
    dtype = _computed(q_BTNH)
    q, k, v = (x if x.dtype == dtype else x.astype(dtype) for x in (q_BTNH, k_BSKH, v_BSKH))
    rows_BKSI, causal = rows(mask, q.shape[0])
    mixed_BTNH = paddle.nn.functional.flashmask_attention(q, k, v, rows_BKSI, causal=causal)
    return mixed_BTNH.reshape([0, 0, -1])


def rows(mask: Mask, batch: int) -> tuple[paddle.Tensor, bool]:
    """The mask as the kernel takes it, for so many rows of the batch, and whether it is to add causal order.

    Rows of queries count from the first new one. In causal order there is one number to a key [B, 1, S, 1]: the row from
    which on it is hidden. Else there are two [B, 1, S, 2], the second the first row that sees it.
    """
    causal = mask.causal and not mask.past
    bounds = [mask.last_BS] if causal else [mask.last_BS, mask.first_BS]
    rows_BSI = paddle.stack(bounds, axis=-1).astype("int32") - mask.past
    rows_BSI = rows_BSI.clip(min=0, max=mask.new)
    return rows_BSI.expand([batch, *rows_BSI.shape[1:]]).unsqueeze(1), causal


def _computed(x: paddle.Tensor) -> paddle.dtype:
    """The type that products of this tensor are computed in."""
    return getattr(paddle, paddle.get_autocast_dtype()) if paddle.is_autocast_enabled() else x.dtype


def _served(x: paddle.Tensor) -> bool:
    return bool(x.place.is_gpu_place()) and paddle.device.cuda.get_device_capability()[0] >= NEEDED

"""What the composed executor computes with: for each operation a form from plain operations and one of paddle's GPU kernels.

The plain forms are right on every device; paddle's fused kernels exist on GPUs alone (some end the process on a CPU) and
take half types. Letters: T tokens, N heads, K key-value heads, H width of a head, S keys of all sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import paddle
from paddle.nn import functional as F

from llmctl.infer.executors.attention_metadata import View
from llmctl.infer.packed.linear import unpack
from llmctl.infer.packed.model import Linear
from llmctl.nn.attention import attend_dense

HALF = ("float16", "bfloat16")
FUSED_GROUPS, STEP = (0, 64, 128), 64
"""Of paddle's product with weights in codes: inputs that may share a scale, 0 = all of them; what widths are multiples of."""


def forms(device: str, dtype: str) -> SimpleNamespace:
    """The operations for a device and a type to compute in: the fused forms on GPUs in half types, else the plain ones."""
    fused = device.startswith("gpu") and dtype in HALF
    return SimpleNamespace(**{name: pair[fused] for name, pair in FORMS.items()})


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: None, eps: float) -> paddle.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    wide = x.astype("float32")
    unit = wide * paddle.rsqrt((wide * wide).mean(axis=-1, keepdim=True) + eps)
    return (unit * weight.astype("float32")).astype(x.dtype)


def fused_rms_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: None, eps: float) -> paddle.Tensor:
    """``rms_norm`` by paddle's kernel, which takes rows."""
    rows = x.reshape([-1, x.shape[-1]])
    return paddle.incubate.nn.functional.fused_rms_norm(rows, weight, None, eps, 1)[0].reshape(x.shape)


def layer_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None, eps: float) -> paddle.Tensor:
    """The mean taken away, divided by the deviation, times weight, plus bias."""
    wide = x.astype("float32")
    wide = wide - wide.mean(axis=-1, keepdim=True)
    unit = wide * paddle.rsqrt((wide * wide).mean(axis=-1, keepdim=True) + eps)
    y = unit * weight.astype("float32")
    return (y if bias is None else y + bias.astype("float32")).astype(x.dtype)


def fused_layer_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None, eps: float) -> paddle.Tensor:
    """``layer_norm`` by paddle's kernel, which takes weight and bias in float32."""
    weight = weight.astype("float32")
    bias = paddle.zeros_like(weight) if bias is None else bias.astype("float32")
    return paddle.incubate.nn.functional.fused_layer_norm(x, weight, bias, eps, begin_norm_axis=1)[0]


def turn(x_TNH: paddle.Tensor, cos_TW: paddle.Tensor, sin_TW: paddle.Tensor) -> paddle.Tensor:
    """The first 2W elements of each head turned, element i with element i + W."""
    width = cos_TW.shape[-1]
    cos, sin = cos_TW.unsqueeze(1), sin_TW.unsqueeze(1)
    low, high = x_TNH[..., :width], x_TNH[..., width : 2 * width]
    parts = [low * cos - high * sin, high * cos + low * sin]
    if 2 * width < x_TNH.shape[-1]:
        parts.append(x_TNH[..., 2 * width :])
    return paddle.concat(parts, axis=-1)


def fused_turn(x_TNH: paddle.Tensor, cos_TW: paddle.Tensor, sin_TW: paddle.Tensor) -> paddle.Tensor:
    """``turn`` by paddle's kernel, which takes whole heads and an angle for each element."""
    width = 2 * cos_TW.shape[-1]
    cos, sin = (paddle.concat([a, a], axis=-1).reshape([1, -1, 1, width]) for a in (cos_TW, sin_TW))
    turned = paddle.incubate.nn.functional.fused_rotary_position_embedding(
        x_TNH[..., :width].unsqueeze(0), sin=sin, cos=cos, use_neox_rotary_style=False
    )[0].squeeze(0)
    return turned if width == x_TNH.shape[-1] else paddle.concat([turned, x_TNH[..., width:]], axis=-1)


def swiglu(x: paddle.Tensor) -> paddle.Tensor:
    """silu of the first half of the last axis times the second half."""
    gate, up = paddle.split(x, 2, axis=-1)
    return F.silu(gate) * up


class Dense:
    """x W + b with the weight unpacked.

    Args:
        linear: The packed layer.
        dtype: Type to compute in.
    """

    def __init__(self, linear: Linear, dtype: str) -> None:
        self._weight = tensor(unpack(linear.weight), dtype)
        self._bias = tensor(linear.bias, dtype)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        y = paddle.matmul(x, self._weight)
        return y if self._bias is None else y + self._bias


class Coded:
    """``Dense`` with the weight in paddle's own codes of 8 bits, made anew from what the packed ones stand for.

    Codes of 4 bits go into 8, too: packed ones reach -8, paddle's end at -7.
    """

    def __init__(self, linear: Linear, dtype: str) -> None:
        weight = tensor(unpack(linear.weight), dtype)
        self._group = linear.weight.group or -1
        self._codes, self._scale = paddle.nn.quant.weight_quantize(weight, "weight_only_int8", group_size=self._group)
        self._bias = tensor(linear.bias, dtype)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.nn.quant.weight_only_linear(
            x, self._codes, self._bias, self._scale, "int8", group_size=self._group
        )


def fused_linear(linear: Linear, dtype: str) -> Dense | Coded:
    """The weight in codes where paddle has a kernel for it, else unpacked."""
    packed = linear.weight
    coded = packed.kind in ("int8", "int4") and packed.group in FUSED_GROUPS
    whole = packed.inputs % max(packed.group, STEP) == 0 and packed.outputs % STEP == 0
    return Coded(linear, dtype) if coded and whole else Dense(linear, dtype)


def attend(q_TNH: paddle.Tensor, k_SKH: paddle.Tensor, v_SKH: paddle.Tensor, view: View) -> paddle.Tensor:
    """softmax(q k^T / sqrt(H) + penalties) v [T, N*H], one sequence after another."""
    parts = []
    for sequence in view.sequences:
        q, k, v = q_TNH[sequence.queries], k_SKH[sequence.keys], v_SKH[sequence.keys]
        bias = sequence.bias(q_TNH.dtype)
        parts.append(attend_dense(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), bias).squeeze(0))
    return parts[0] if len(parts) == 1 else paddle.concat(parts)


def fused_attend(q_TNH: paddle.Tensor, k_SKH: paddle.Tensor, v_SKH: paddle.Tensor, view: View) -> paddle.Tensor:
    """``attend`` over all sequences at once by paddle's FlashMask kernel, which skips what no query of a tile sees.

    Its block attention would read the cache in place, but takes only whole prompts and single tokens, and no window.
    """
    if view.slopes or q_TNH.shape[-1] > 256 or q_TNH.shape[-1] % 8:
        return attend(q_TNH, k_SKH, v_SKH, view)
    bounds = view.bounds()
    mixed = F.flashmask_attention(q_TNH.unsqueeze(0), k_SKH.unsqueeze(0), v_SKH.unsqueeze(0), bounds, causal=False)
    return mixed.reshape([q_TNH.shape[0], -1])


def tensor(array: Any, dtype: str) -> paddle.Tensor | None:
    """An array as a tensor of a type; None stays None."""
    return None if array is None else paddle.to_tensor(array).astype(dtype)


FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "rmsnorm": (rms_norm, fused_rms_norm),
    "layernorm": (layer_norm, fused_layer_norm),
    "turn": (turn, fused_turn),
    "swiglu": (swiglu, F.swiglu),
    "linear": (Dense, fused_linear),
    "attend": (attend, fused_attend),
}
"""Operation -> its plain form, its form on a GPU."""

"""Operations of the paddle executor, each in two forms: composed of basic operations, and paddle's fused GPU kernel.

The composed ones are right on every device; the fused kernels exist on GPUs only (some crash the process on a CPU) and take
half-precision types. Shape suffixes: T tokens, N heads, K key-value heads, H head_dim, S keys of all sequences, W rotated
pairs of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import paddle
from paddle.nn import functional as F

from llmctl.infer.executors.attention_metadata import AttentionMetadata
from llmctl.infer.packed.linear import LIMITS, parts_of, unpack
from llmctl.infer.packed.model import Linear
from llmctl.nn.attention import attend_dense

HALF = ("float16", "bfloat16")
FUSED_GROUPS, MULTIPLE = (0, 64, 128), 64
"""Limits of paddle's weight-only linear: its group sizes (0 = one scale per output), and the divisor of inputs and outputs."""


def operations(device: str, dtype: str) -> SimpleNamespace:
    """The operations for a device and a type to compute in: fused on GPUs in half precision, else composed."""
    fused = device.startswith("gpu") and dtype in HALF
    return SimpleNamespace(**{name: pair[fused] for name, pair in OPERATIONS.items()})


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None, eps: float) -> paddle.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, plus a bias where offsets were folded into the norm."""
    x_float = x.astype("float32")
    normalized = x_float * paddle.rsqrt((x_float * x_float).mean(axis=-1, keepdim=True) + eps)
    y = normalized * weight.astype("float32")
    return (y if bias is None else y + bias.astype("float32")).astype(x.dtype)


def fused_rms_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None, eps: float) -> paddle.Tensor:
    """``rms_norm`` by paddle's kernel, which takes a matrix."""
    rows = x.reshape([-1, x.shape[-1]])
    y = paddle.incubate.nn.functional.fused_rms_norm(rows, weight, None, eps, 1)[0].reshape(x.shape)
    return y if bias is None else y + bias


def layer_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None, eps: float) -> paddle.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis."""
    x_float = x.astype("float32")
    x_float = x_float - x_float.mean(axis=-1, keepdim=True)
    normalized = x_float * paddle.rsqrt((x_float * x_float).mean(axis=-1, keepdim=True) + eps)
    y = normalized * weight.astype("float32")
    return (y if bias is None else y + bias.astype("float32")).astype(x.dtype)


def fused_layer_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None, eps: float) -> paddle.Tensor:
    """``layer_norm`` by paddle's kernel, which takes weight and bias in float32."""
    weight = weight.astype("float32")
    bias = paddle.zeros_like(weight) if bias is None else bias.astype("float32")
    return paddle.incubate.nn.functional.fused_layer_norm(x, weight, bias, eps, begin_norm_axis=1)[0]


def apply_rope(x_TNH: paddle.Tensor, cos_TW: paddle.Tensor, sin_TW: paddle.Tensor) -> paddle.Tensor:
    """RoPE on the first 2W elements of each head, element i paired with element i + W."""
    pairs = cos_TW.shape[-1]
    cos, sin = cos_TW.unsqueeze(1), sin_TW.unsqueeze(1)
    low, high = x_TNH[..., :pairs], x_TNH[..., pairs : 2 * pairs]
    parts = [low * cos - high * sin, high * cos + low * sin]
    if 2 * pairs < x_TNH.shape[-1]:
        parts.append(x_TNH[..., 2 * pairs :])
    return paddle.concat(parts, axis=-1)


def fused_apply_rope(x_TNH: paddle.Tensor, cos_TW: paddle.Tensor, sin_TW: paddle.Tensor) -> paddle.Tensor:
    """``apply_rope`` by paddle's kernel, which rotates all of a head and takes an angle for each element."""
    rotary_dim = 2 * cos_TW.shape[-1]
    cos, sin = (paddle.concat([a, a], axis=-1).reshape([1, -1, 1, rotary_dim]) for a in (cos_TW, sin_TW))
    rotated = paddle.incubate.nn.functional.fused_rotary_position_embedding(
        x_TNH[..., :rotary_dim].unsqueeze(0), sin=sin, cos=cos, use_neox_rotary_style=False
    )[0].squeeze(0)
    return rotated if rotary_dim == x_TNH.shape[-1] else paddle.concat([rotated, x_TNH[..., rotary_dim:]], axis=-1)


def swiglu(x: paddle.Tensor) -> paddle.Tensor:
    """silu(first half of the last axis) * second half."""
    gate, up = paddle.split(x, 2, axis=-1)
    return F.silu(gate) * up


class DenseLinear:
    """x W + b with the unpacked weight.

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


class Int8Linear:
    """``DenseLinear`` with the weight quantized to paddle's own int8 codes, from the dequantized packed weight.

    int4 codes become int8, too: packed ones reach -8, paddle's end at -7.

    Args:
        linear: The packed layer; groups of its parts are of the same size.
        dtype: Type to compute in.
    """

    def __init__(self, linear: Linear, dtype: str) -> None:
        weight = tensor(unpack(linear.weight), dtype)
        self._group = parts_of(linear.weight)[0].group or -1
        self._codes, self._scale = paddle.nn.quant.weight_quantize(weight, "weight_only_int8", group_size=self._group)
        self._bias = tensor(linear.bias, dtype)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.nn.quant.weight_only_linear(
            x, self._codes, self._bias, self._scale, "int8", group_size=self._group
        )


def fused_linear(linear: Linear, dtype: str) -> DenseLinear | Int8Linear:
    """The weight as int8 codes if paddle has a kernel for it, else unpacked."""
    weight, kinds = linear.weight, {(part.kind in LIMITS, part.group) for part in parts_of(linear.weight)}
    codes, group = kinds.pop()
    quantized = not kinds and codes and group in FUSED_GROUPS
    divisible = weight.inputs % max(group, MULTIPLE) == 0 and weight.outputs % MULTIPLE == 0
    return Int8Linear(linear, dtype) if quantized and divisible else DenseLinear(linear, dtype)


def attention(
    q_TNH: paddle.Tensor, k_SKH: paddle.Tensor, v_SKH: paddle.Tensor, metadata: AttentionMetadata
) -> paddle.Tensor:
    """softmax(q k^T / sqrt(H) + bias) v [T, N*H], sequence by sequence."""
    parts = []
    for sequence in metadata.sequences:
        q, k, v = q_TNH[sequence.queries], k_SKH[sequence.keys], v_SKH[sequence.keys]
        bias = sequence.bias(q_TNH.dtype)
        parts.append(attend_dense(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), bias).squeeze(0))
    return parts[0] if len(parts) == 1 else paddle.concat(parts)


def fused_attention(
    q_TNH: paddle.Tensor, k_SKH: paddle.Tensor, v_SKH: paddle.Tensor, metadata: AttentionMetadata
) -> paddle.Tensor:
    """``attention`` over all sequences at once by paddle's FlashMask kernel, which skips tiles without any attention.

    Paddle's block attention would read the cache in place, but takes only whole prompts and single tokens, and no window.
    """
    if metadata.slopes or q_TNH.shape[-1] > 256 or q_TNH.shape[-1] % 8:
        return attention(q_TNH, k_SKH, v_SKH, metadata)
    bounds = metadata.flashmask_bounds()
    attended = F.flashmask_attention(q_TNH.unsqueeze(0), k_SKH.unsqueeze(0), v_SKH.unsqueeze(0), bounds, causal=False)
    return attended.reshape([q_TNH.shape[0], -1])


def tensor(array: Any, dtype: str) -> paddle.Tensor | None:
    """An array as a tensor of this type; None stays None."""
    return None if array is None else paddle.to_tensor(array).astype(dtype)


OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "rmsnorm": (rms_norm, fused_rms_norm),
    "layernorm": (layer_norm, fused_layer_norm),
    "apply_rope": (apply_rope, fused_apply_rope),
    "swiglu": (swiglu, F.swiglu),
    "linear": (DenseLinear, fused_linear),
    "attention": (attention, fused_attention),
}
"""Operation -> (composed, fused)."""

"""The Qwen decoders, composed of blocks from ``llmctl.nn``; their tensors are those of the cards. Shape suffixes as in ``llmctl.nn``."""

import math

import paddle

from llmctl.nn import (
    Attention,
    CausalLM,
    GatedMLP,
    PackedAttention,
    Rotary,
    apply_rope,
    concatenated_qkv,
    decoder_of,
    head_of,
)
from llmctl_qwen import NTK, RULES


class QwenForCausalLM(CausalLM):
    """Token ids to logits, from what the card reads in ``config.json``."""

    def __init__(self, dims) -> None:
        decoder = decoder_of(
            dims,
            lambda: PackedAttention(dims, concatenated_qkv, ("c_attn", "c_proj"), out_bias=False, rope=_rope),
            lambda: GatedMLP(dims.hidden, dims.ffn, std=dims.init_std, names=("w2", "w1", "c_proj")),
            block_names=("attn", "mlp", "ln_1", "ln_2"),
            names=("wte", "h", "ln_f"),
            rotary=QwenRotary(dims),
        )
        super().__init__("qwen", decoder, head_of(dims))


class QwenRotary(paddle.nn.Layer):
    """Cosines and sines of positions, and the scale of queries; training uses unscaled RoPE, whatever the length."""

    def __init__(self, dims) -> None:
        super().__init__()
        self._unscaled = self._scaled = Rotary(dims.head_dim, dims.rope_theta)
        if dims.dynamic_ntk:
            self._scaled = Rotary(dims.head_dim, dims.rope_theta, NTK, dims.trained, RULES)
        self.by_length, self.max_stable_length = self._scaled.by_length, self._scaled.max_stable_length
        self._log_n_beyond = dims.trained if dims.log_n else None

    def forward(self, position_BT, dtype):
        rotary = self._unscaled if self.training else self._scaled
        return rotary(position_BT, dtype), self._query_scale(position_BT, dtype)

    def _query_scale(self, position_BT, dtype):
        """Logarithm of the position to the base of the trained length, beyond it [B, T, 1, 1]; None in training."""
        if self._log_n_beyond is None or self.training:
            return None
        position = (position_BT + 1).clip(min=self._log_n_beyond).astype("float64")
        return (position.log() / math.log(self._log_n_beyond)).astype(dtype).unsqueeze(-1).unsqueeze(-1)


def _rope(q_BTNH, k_BTNH, inputs):
    cos_sin, query_scale = inputs
    q, k = apply_rope(q_BTNH, *cos_sin), apply_rope(k_BTNH, *cos_sin)
    return (q if query_scale is None else q * query_scale.expand(q.shape)), k


class Qwen2ForCausalLM(CausalLM):
    """Token ids to logits, from what the card reads in ``config.json``."""

    def __init__(self, dims) -> None:
        super().__init__("qwen2", _decoder(dims, bias=True, out_bias=False), head_of(dims))


class Qwen3ForCausalLM(CausalLM):
    """Token ids to logits, from what the card reads in ``config.json``."""

    def __init__(self, dims) -> None:
        super().__init__("qwen3", _decoder(dims, bias=dims.attention_bias, norm_eps=dims.norm_eps), head_of(dims))


def _decoder(dims, **attention):
    return decoder_of(
        dims,
        lambda: Attention(dims.hidden, dims.heads, dims.kv_heads, dims.head_dim, std=dims.init_std, **attention),
        lambda: GatedMLP(dims.hidden, dims.ffn, std=dims.init_std),
        rotary=Rotary(dims.head_dim, dims.rope_theta, dims.rope_scaling, dims.max_positions),
    )

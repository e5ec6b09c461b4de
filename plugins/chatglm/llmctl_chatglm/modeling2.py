"""The ChatGLM2 and ChatGLM3 decoder, composed of blocks from ``llmctl.nn``; its tensors are those of the card."""

from __future__ import annotations

import paddle

from llmctl.nn.block import Block
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import embedding, run_layers
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import PackedGatedMLP
from llmctl.nn.norm import RMSNorm
from llmctl.nn.packed_attention import PackedAttention, grouped
from llmctl.nn.position import Rotary, rotate

THETA = 10000.0
NAMES = ("self_attention", "mlp", "input_layernorm", "post_attention_layernorm")


class ChatGLM2ForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("chatglm2", ChatGLM2Decoder(dims), Linear(dims.hidden, dims.vocab, std=dims.init_std))


class ChatGLM2Decoder(paddle.nn.Layer):
    """Token ids to hidden states after the final norm."""

    def __init__(self, dims) -> None:
        super().__init__()
        table, layers = embedding(dims.vocab, dims.hidden, dims.init_std), (_block(dims) for _ in range(dims.layers))
        self.embedding = paddle.nn.LayerDict({"word_embeddings": table})
        norm = RMSNorm(dims.hidden, dims.norm_eps)
        self.encoder = paddle.nn.LayerDict({"layers": paddle.nn.LayerList(layers), "final_layernorm": norm})
        self._angles = _rotary(dims)

    def forward(self, input_ids_BT, layout, cache=None):
        x_BTD = self.embedding["word_embeddings"](input_ids_BT)
        angles = self._angles(layout.position_BT, x_BTD.dtype)
        return self.encoder["final_layernorm"](run_layers(self.encoder["layers"], x_BTD, angles, layout.mask(), cache))


def _rotary(dims) -> Rotary:
    """For half of a head; the ratio multiplies the base or divides positions."""
    if dims.rope_ratio_of == "base":
        return Rotary(dims.head_dim // 2, THETA * dims.rope_ratio)
    return Rotary(dims.head_dim // 2, THETA, {"rope_type": "linear", "factor": dims.rope_ratio})


def _block(dims) -> Block:
    return Block(
        PackedAttention(dims, grouped(dims.heads // dims.kv_heads), out_bias=False, turn=_turn),
        PackedGatedMLP(dims.hidden, dims.ffn, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std),
        RMSNorm(dims.hidden, dims.norm_eps),
        RMSNorm(dims.hidden, dims.norm_eps),
        NAMES,
    )


def _turn(q_BTNH, k_BTKH, angles):
    return _half_turned(q_BTNH, angles), _half_turned(k_BTKH, angles)


def _half_turned(x_BTNH, angles):
    """The first half of each head turned. Pairs are left apart: scores do not see the order within a head."""
    first, rest = paddle.split(x_BTNH, 2, axis=-1)
    pairs = first.reshape([*first.shape[:3], -1, 2])
    apart = paddle.concat([pairs[..., 0], pairs[..., 1]], axis=-1)
    return paddle.concat([rotate(apart, *angles), rest], axis=-1)

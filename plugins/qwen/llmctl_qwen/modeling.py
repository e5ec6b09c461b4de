"""The first Qwen's decoder, composed of blocks from ``llmctl.nn``; its tensors are those of the card. Letters as there."""

from __future__ import annotations

import math

import paddle

from llmctl.nn.block import Block
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import Decoder, embedding
from llmctl.nn.frequencies import Rotation, Rule, plain
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import GatedMLP
from llmctl.nn.norm import RMSNorm
from llmctl.nn.packed_attention import PackedAttention, blocks
from llmctl.nn.position import Rotary, rotate


def _ntk(rotation, scaling):
    """A base that grows in steps each time the length doubles past the trained one."""
    alpha = 1.0
    if rotation.length > rotation.max_positions:
        alpha = 2.0 ** math.ceil(math.log2(rotation.length / rotation.max_positions) + 1) - 1
    theta = rotation.theta * alpha ** (rotation.head_dim / (rotation.head_dim - 2))
    return plain(Rotation(rotation.head_dim, theta), scaling)


NTK = {"rope_type": "ntk-steps"}
RULES = {"ntk-steps": Rule(_ntk, by_length=True)}


class QwenForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        decoder = Decoder(
            embedding(dims.vocab, dims.hidden, dims.init_std),
            (_block(dims) for _ in range(dims.layers)),
            RMSNorm(dims.hidden, dims.norm_eps),
            QwenAngles(dims),
            names=("wte", "h", "ln_f"),
        )
        super().__init__("qwen", decoder, Linear(dims.hidden, dims.vocab, std=dims.init_std))


class QwenAngles(paddle.nn.Layer):
    """Cosines and sines of positions, and the factor of queries; training uses plain positions, whatever the length."""

    def __init__(self, dims) -> None:
        super().__init__()
        self._plain = self._stretched = Rotary(dims.head_dim, dims.rope_theta)
        if dims.dynamic_ntk:
            self._stretched = Rotary(dims.head_dim, dims.rope_theta, NTK, dims.trained, RULES)
        self.by_length, self.stable_length = self._stretched.by_length, self._stretched.stable_length
        self._log_n_beyond = dims.trained if dims.log_n else None

    def forward(self, position_BT, dtype):
        rotary = self._plain if self.training else self._stretched
        return rotary(position_BT, dtype), self._query_scale(position_BT, dtype)

    def _query_scale(self, position_BT, dtype):
        """log of the position to the base of the trained length, past that length [B, T, 1, 1]; None in training."""
        if self._log_n_beyond is None or self.training:
            return None
        place = (position_BT + 1).clip(min=self._log_n_beyond).astype("float64")
        return (place.log() / math.log(self._log_n_beyond)).astype(dtype).unsqueeze(-1).unsqueeze(-1)


def _turn(q_BTNH, k_BTNH, angles):
    rotation, query_scale = angles
    q, k = rotate(q_BTNH, *rotation), rotate(k_BTNH, *rotation)
    return (q if query_scale is None else q * query_scale.expand(q.shape)), k


def _block(dims) -> Block:
    return Block(
        PackedAttention(dims, blocks, ("c_attn", "c_proj"), out_bias=False, turn=_turn),
        GatedMLP(dims.hidden, dims.ffn, std=dims.init_std, names=("w2", "w1", "c_proj")),
        RMSNorm(dims.hidden, dims.norm_eps),
        RMSNorm(dims.hidden, dims.norm_eps),
        ("attn", "mlp", "ln_1", "ln_2"),
    )

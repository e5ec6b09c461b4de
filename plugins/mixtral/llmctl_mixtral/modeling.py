"""The Mixtral and Mistral decoders, composed of blocks from ``llmctl.nn``; their tensors are those of the cards."""

from __future__ import annotations

from functools import partial

import paddle

from llmctl import Moe
from llmctl.nn.attention import Attention, causal_bias
from llmctl.nn.block import Block
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import Decoder, embedding
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import GatedMLP, gated
from llmctl.nn.moe import SparseMLP
from llmctl.nn.norm import RMSNorm
from llmctl.nn.position import Rotary
from llmctl.nn.router import SoftmaxTopK


class MixtralForCausalLM(CausalLM):
    """Token ids to logits, through mixtures of experts.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        aux_loss = dims.aux_loss if dims.balance else 0.0
        super().__init__("mixtral", _decoder(dims, SparseBlock), _head(dims), aux_loss)


class MistralForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("mistral", _decoder(dims, _dense_block), _head(dims))


class SparseBlock(paddle.nn.Layer):
    """x + attention(norm(x)), then x + experts(norm(x))."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.self_attn = _attention(dims)
        self.block_sparse_moe = SparseMLP(
            SoftmaxTopK(dims.hidden, dims.experts, Moe("softmax-topk", dims.top_k), dims.init_std),
            (Expert(dims) for _ in range(dims.experts)),
        )
        self.input_layernorm = RMSNorm(dims.hidden, dims.norm_eps)
        self.post_attention_layernorm = RMSNorm(dims.hidden, dims.norm_eps)

    def forward(self, x_BTD, angles, bias, cache=None, layer=0):
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), angles, bias, cache, layer)
        return x_BTD + self.block_sparse_moe(self.post_attention_layernorm(x_BTD))


class Expert(paddle.nn.Layer):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.w1 = Linear(dims.hidden, dims.ffn, std=dims.init_std)
        self.w3 = Linear(dims.hidden, dims.ffn, std=dims.init_std)
        self.w2 = Linear(dims.ffn, dims.hidden, std=dims.init_std)

    def forward(self, x_TD):
        return self.w2(gated(self.w1(x_TD), self.w3(x_TD)))


def _dense_block(dims) -> Block:
    return Block(
        _attention(dims),
        GatedMLP(dims.hidden, dims.ffn, std=dims.init_std),
        RMSNorm(dims.hidden, dims.norm_eps),
        RMSNorm(dims.hidden, dims.norm_eps),
    )


def _attention(dims) -> Attention:
    return Attention(dims.hidden, dims.heads, dims.kv_heads, dims.head_dim, std=dims.init_std)


def _decoder(dims, block) -> Decoder:
    return Decoder(
        embedding(dims.vocab, dims.hidden, dims.init_std),
        (block(dims) for _ in range(dims.layers)),
        RMSNorm(dims.hidden, dims.norm_eps),
        Rotary(dims.head_dim, dims.rope_theta, dims.rope_scaling, dims.max_positions),
        partial(causal_bias, window=dims.window),
    )


def _head(dims) -> Linear | None:
    return None if dims.tied else Linear(dims.hidden, dims.vocab, std=dims.init_std)

"""The Qwen2, Qwen2-MoE and Qwen3 decoders, composed of blocks from ``llmctl.nn``; their tensors are those of the cards."""

from __future__ import annotations

from functools import partial

from paddle.nn.functional import sigmoid

from llmctl.card import Moe
from llmctl.nn.attention import Attention
from llmctl.nn.block import Block
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import Decoder, embedding
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import GatedMLP
from llmctl.nn.moe import SparseMLP
from llmctl.nn.norm import RMSNorm
from llmctl.nn.position import Rotary
from llmctl.nn.router import SoftmaxTopK


class Qwen2ForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("qwen2", _decoder(dims, bias=True, out_bias=False), _head(dims))


class Qwen2MoeForCausalLM(CausalLM):
    """Token ids to logits, through mixtures of experts in the layers that have them.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        decoder = _decoder(dims, bias=True, out_bias=False, sparse=dims.sparse)
        super().__init__("qwen2_moe", decoder, _head(dims), dims.aux_loss if dims.balance else 0.0)


class SharedSparseMLP(SparseMLP):
    """The chosen experts and, times a gate of its own, an expert that every token passes."""

    def __init__(self, dims) -> None:
        moe = Moe("softmax-topk", dims.top_k, dims.renormalize)
        experts = (GatedMLP(dims.hidden, dims.expert_ffn, std=dims.init_std) for _ in range(dims.experts))
        super().__init__(SoftmaxTopK(dims.hidden, dims.experts, moe, dims.init_std), experts)
        self.shared_expert = GatedMLP(dims.hidden, dims.shared_ffn, std=dims.init_std)
        self.shared_expert_gate = Linear(dims.hidden, 1, std=dims.init_std)

    def forward(self, x_BTD):
        return super().forward(x_BTD) + sigmoid(self.shared_expert_gate(x_BTD)) * self.shared_expert(x_BTD)


class Qwen3ForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("qwen3", _decoder(dims, norm_eps=dims.norm_eps), _head(dims))


def _decoder(dims, sparse=(), **attention) -> Decoder:
    dense = partial(GatedMLP, dims.hidden, dims.ffn, std=dims.init_std)

    def block(layer) -> Block:
        return Block(
            Attention(dims.hidden, dims.heads, dims.kv_heads, dims.head_dim, std=dims.init_std, **attention),
            SharedSparseMLP(dims) if sparse and sparse[layer] else dense(),
            RMSNorm(dims.hidden, dims.norm_eps),
            RMSNorm(dims.hidden, dims.norm_eps),
        )

    return Decoder(
        embedding(dims.vocab, dims.hidden, dims.init_std),
        (block(layer) for layer in range(dims.layers)),
        RMSNorm(dims.hidden, dims.norm_eps),
        Rotary(dims.head_dim, dims.rope_theta, dims.rope_scaling, dims.max_positions),
    )


def _head(dims) -> Linear | None:
    return None if dims.tied else Linear(dims.hidden, dims.vocab, std=dims.init_std)

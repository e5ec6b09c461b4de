"""The Mixtral and Mistral decoders, composed of blocks from ``llmctl.nn``; their tensors are those of the cards."""

from __future__ import annotations

from functools import partial

from llmctl import Moe
from llmctl.nn import (
    Attention,
    Block,
    CausalLM,
    Decoder,
    GatedMLP,
    Layout,
    Linear,
    RMSNorm,
    Rotary,
    SoftmaxTopK,
    SparseMLP,
    embedding,
)


class MixtralForCausalLM(CausalLM):
    """Token ids to logits, with mixtures of experts.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        aux_loss = dims.aux_loss if dims.balance else 0.0
        super().__init__("mixtral", _decoder(dims, _sparse_block), _head(dims), aux_loss)


class MistralForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("mistral", _decoder(dims, _dense_block), _head(dims))


def _sparse_block(dims) -> Block:
    names = ("w1", "w3", "w2")
    experts = SparseMLP(
        SoftmaxTopK(dims.hidden, dims.experts, Moe("softmax-topk", dims.top_k), dims.init_std),
        (GatedMLP(dims.hidden, dims.ffn, std=dims.init_std, names=names) for _ in range(dims.experts)),
    )
    return _block(dims, experts, "block_sparse_moe")


def _dense_block(dims) -> Block:
    return _block(dims, GatedMLP(dims.hidden, dims.ffn, std=dims.init_std), "mlp")


def _block(dims, mlp, name) -> Block:
    norms = (RMSNorm(dims.hidden, dims.norm_eps) for _ in range(2))
    return Block(
        _attention(dims), mlp, *norms, names=("self_attn", name, "input_layernorm", "post_attention_layernorm")
    )


def _attention(dims) -> Attention:
    return Attention(dims.hidden, dims.heads, dims.kv_heads, dims.head_dim, std=dims.init_std)


def _decoder(dims, block) -> Decoder:
    return Decoder(
        embedding(dims.vocab, dims.hidden, dims.init_std),
        (block(dims) for _ in range(dims.layers)),
        RMSNorm(dims.hidden, dims.norm_eps),
        Rotary(dims.head_dim, dims.rope_theta, dims.rope_scaling, dims.max_positions),
        partial(Layout.mask, window=dims.window),
    )


def _head(dims) -> Linear | None:
    return None if dims.tied else Linear(dims.hidden, dims.vocab, std=dims.init_std)

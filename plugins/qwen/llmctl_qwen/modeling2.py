"""The Qwen2 and Qwen3 decoders, composed of blocks from ``llmctl.nn``; their tensors are those of the cards."""

from __future__ import annotations

from llmctl.nn.attention import Attention
from llmctl.nn.block import Block
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import Decoder, embedding
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import GatedMLP
from llmctl.nn.norm import RMSNorm
from llmctl.nn.position import Rotary


class Qwen2ForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("qwen2", _decoder(dims, bias=True, out_bias=False), _head(dims))


class Qwen3ForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("qwen3", _decoder(dims, norm_eps=dims.norm_eps), _head(dims))


def _decoder(dims, **attention) -> Decoder:
    def block() -> Block:
        return Block(
            Attention(dims.hidden, dims.heads, dims.kv_heads, dims.head_dim, std=dims.init_std, **attention),
            GatedMLP(dims.hidden, dims.ffn, std=dims.init_std),
            RMSNorm(dims.hidden, dims.norm_eps),
            RMSNorm(dims.hidden, dims.norm_eps),
        )

    return Decoder(
        embedding(dims.vocab, dims.hidden, dims.init_std),
        (block() for _ in range(dims.layers)),
        RMSNorm(dims.hidden, dims.norm_eps),
        Rotary(dims.head_dim, dims.rope_theta, dims.rope_scaling, dims.max_positions),
    )


def _head(dims) -> Linear | None:
    return None if dims.tied else Linear(dims.hidden, dims.vocab, std=dims.init_std)

"""The LLaMA decoder, composed of blocks from ``llmctl.nn``; its tensors are those of the card."""

from __future__ import annotations

from llmctl.nn.attention import Attention
from llmctl.nn.block import Block
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import Decoder, embedding
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import GatedMLP
from llmctl.nn.norm import RMSNorm
from llmctl.nn.position import Rotary
from llmctl_llama import ROPE_RULES


class LlamaForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.

    Raises:
        ConfigError: ``rope_scaling`` is of a kind that is not supported.
    """

    def __init__(self, dims) -> None:
        decoder = Decoder(
            embedding(dims.vocab, dims.hidden, dims.init_std),
            (_block(dims) for _ in range(dims.layers)),
            RMSNorm(dims.hidden, dims.norm_eps),
            Rotary(dims.head_dim, dims.rope_theta, dims.rope_scaling, dims.max_positions, ROPE_RULES),
        )
        super().__init__("llama", decoder, None if dims.tied else Linear(dims.hidden, dims.vocab, std=dims.init_std))


def _block(dims) -> Block:
    """One layer of the decoder."""
    return Block(
        Attention(dims.hidden, dims.heads, dims.kv_heads, dims.head_dim, dims.attention_bias, dims.init_std),
        GatedMLP(dims.hidden, dims.ffn, dims.mlp_bias, dims.init_std),
        RMSNorm(dims.hidden, dims.norm_eps),
        RMSNorm(dims.hidden, dims.norm_eps),
    )

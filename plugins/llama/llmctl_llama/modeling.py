"""The LLaMA decoder, composed of blocks from ``llmctl.nn``; its tensors are those of the card."""

from __future__ import annotations

from llmctl.nn import Attention, CausalLM, GatedMLP, Rotary, decoder_of, head_of
from llmctl_llama import RULES


class LlamaForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.

    Raises:
        ConfigError: ``rope_scaling`` is of a kind that is not supported.
    """

    def __init__(self, dims) -> None:
        decoder = decoder_of(
            dims,
            lambda: Attention(
                dims.hidden, dims.heads, dims.kv_heads, dims.head_dim, dims.attention_bias, dims.init_std
            ),
            lambda: GatedMLP(dims.hidden, dims.ffn, dims.mlp_bias, dims.init_std),
            rotary=Rotary(dims.head_dim, dims.rope_theta, dims.rope_scaling, dims.max_positions, RULES),
        )
        super().__init__("llama", decoder, head_of(dims))

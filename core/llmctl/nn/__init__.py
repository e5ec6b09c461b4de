"""Building blocks of decoder models: what the modeling files of families compose.

This is the public path of every block: ``from llmctl.nn import Attention``. Importing the package imports nothing; a name
is imported, and paddle with it, on first use. How a family composes blocks, and its names in the state dict, is in its
plugin. Blocks know no training method; the load-balancing loss of MoE routers is over all layers, so ``CausalLM`` computes it.

Shape suffixes of tensor names, one letter per axis: B batch, T new positions, S past and new positions, D hidden, F ffn, N query
heads, K key-value heads, G query heads per key-value head, H head_dim, V vocabulary. ``x_BTD`` has three axes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmctl.nn.attention import Attention, attend, softmax, split_heads
    from llmctl.nn.block import Block
    from llmctl.nn.cache import KVCache
    from llmctl.nn.causal_lm import CausalLM
    from llmctl.nn.decoder import Decoder, Stack, decoder_of, embedding, head_of, run_layers
    from llmctl.nn.linear import Linear
    from llmctl.nn.loss import token_log_probs, token_loss
    from llmctl.nn.mask import Layout, Mask
    from llmctl.nn.mlp import MLP, GatedMLP, PackedGatedMLP, gelu_tanh, swiglu
    from llmctl.nn.moe import SoftmaxTopK, SparseMLP, balancing_loss, router_sums
    from llmctl.nn.norm import LayerNorm, RMSNorm, rms_norm
    from llmctl.nn.packed_attention import PackedAttention, concatenated_qkv, grouped_qkv, interleaved_qkv
    from llmctl.nn.prefix_lm import PrefixLMInputs, find_prefixes
    from llmctl.nn.rotary import (
        Rotary,
        apply_partial_rope,
        apply_partial_rope_interleaved,
        apply_rope,
        apply_rope_2d,
        apply_rope_half_interleaved,
        apply_rope_qk,
        positions,
    )

_MODULES = {
    "decoder": ("Decoder", "Stack", "decoder_of", "embedding", "head_of", "run_layers"),
    "block": ("Block",),
    "attention": ("Attention", "attend", "softmax", "split_heads"),
    "packed_attention": ("PackedAttention", "concatenated_qkv", "grouped_qkv", "interleaved_qkv"),
    "mlp": ("MLP", "GatedMLP", "PackedGatedMLP", "gelu_tanh", "swiglu"),
    "moe": ("SoftmaxTopK", "SparseMLP", "balancing_loss", "router_sums"),
    "norm": ("LayerNorm", "RMSNorm", "rms_norm"),
    "linear": ("Linear",),
    "rotary": (
        "Rotary",
        "apply_rope",
        "apply_rope_qk",
        "apply_partial_rope",
        "apply_partial_rope_interleaved",
        "apply_rope_2d",
        "apply_rope_half_interleaved",
        "positions",
    ),
    "mask": ("Layout", "Mask"),
    "prefix_lm": ("PrefixLMInputs", "find_prefixes"),
    "cache": ("KVCache",),
    "causal_lm": ("CausalLM",),
    "loss": ("token_log_probs", "token_loss"),
}
"""Module -> the names that are public, in the order of the guide (docs/blocks.md)."""

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "CausalLM",
    "Decoder",
    "GatedMLP",
    "KVCache",
    "LayerNorm",
    "Layout",
    "Linear",
    "Mask",
    "PackedAttention",
    "PackedGatedMLP",
    "PrefixLMInputs",
    "RMSNorm",
    "Rotary",
    "SoftmaxTopK",
    "SparseMLP",
    "Stack",
    "apply_partial_rope",
    "apply_partial_rope_interleaved",
    "apply_rope",
    "apply_rope_2d",
    "apply_rope_half_interleaved",
    "apply_rope_qk",
    "attend",
    "balancing_loss",
    "concatenated_qkv",
    "decoder_of",
    "embedding",
    "find_prefixes",
    "gelu_tanh",
    "grouped_qkv",
    "head_of",
    "interleaved_qkv",
    "positions",
    "rms_norm",
    "router_sums",
    "run_layers",
    "softmax",
    "split_heads",
    "swiglu",
    "token_log_probs",
    "token_loss",
]


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

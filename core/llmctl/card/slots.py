"""The names of the fused decoder's slots and kernels.

This is the only list of them: the plugin guide shows it, and a card with another name is invalid.
"""

from __future__ import annotations

from collections.abc import Mapping

SLOTS: Mapping[str, str] = {
    "ln": "weight of the norm before attention",
    "ln_bias": "its bias",
    "qkv": "query, key and value projections: packed, or separate as `qkv.0`, `qkv.1`, `qkv.2`",
    "qkv_bias": "their biases: `qkv_bias`, or `qkv_bias.0`, `qkv_bias.1`, `qkv_bias.2`",
    "q_norm": "weight of the norm of each head's queries",
    "k_norm": "weight of the norm of each head's keys",
    "out": "output projection of attention",
    "out_bias": "its bias",
    "ffn_ln": "weight of the norm before the feed-forward layer",
    "ffn_ln_bias": "its bias",
    "gate": "router of a mixture of experts",
    "ffn1": "up projection; of a gated layer both: packed, or gate as `ffn1.0` and up as `ffn1.1`",
    "ffn1_bias": "its bias, or `ffn1_bias.0` and `ffn1_bias.1`",
    "ffn2": "down projection",
    "ffn2_bias": "its bias",
}
"""Slot of a layer -> its tensor. A number after a dot is a part of the slot."""

OUTER_SLOTS: Mapping[str, str] = {
    "embed": "token embeddings",
    "positions": "position embeddings",
    "embed_ln": "weight of the norm of the embeddings",
    "embed_ln_bias": "its bias",
    "project_in": "projection of token embeddings to the hidden size",
    "project_out": "projection back to the width of token embeddings",
    "final_ln": "weight of the norm after the layers",
    "final_ln_bias": "its bias",
    "head": "output head; none = tied to the token embeddings",
}
"""Slots of the tensors outside the layers."""

NEEDED = frozenset({"ln", "qkv", "out", "ffn_ln", "ffn1", "ffn2"})
"""Slots of a layer that the fused decoder requires."""

NEEDED_OUTSIDE = frozenset({"embed"})
"""Slots outside the layers that it requires."""

OTHER = "other"
_NO_KERNEL = "any other; the fused decoder has no kernel for it, so the family has no fused path"

NORMS: Mapping[str, str] = {
    "rmsnorm": "x / sqrt(mean(x^2) + eps) * weight",
    "layernorm": "(x - mean) / sqrt(variance + eps) * weight + bias",
    OTHER: _NO_KERNEL,
}
ACTIVATIONS: Mapping[str, str] = {
    "swiglu": "silu(gate) * up, which requires both parts of `ffn1`",
    "gelu": "x * Phi(x)",
    "gelu-tanh": "its approximation with tanh, `gelu_new` and `gelu_pytorch_tanh` in config.json",
    "relu": "max(x, 0)",
    OTHER: _NO_KERNEL,
}
POSITIONS: Mapping[str, str] = {
    "rope-neox": "RoPE that pairs element i of a head with element i + head_dim/2 (GPT-NeoX)",
    "rope-neox-ntk": "the same with NTK scaling by length, and log-n scaled queries",
    "rope-neox-or-alibi": "one or the other, depending on config.json",
    "rope-half-interleaved": "RoPE on the first half of each head, in pairs 2i and 2i + 1 (GPT-J)",
    "rope-2d": "RoPE on each half of a head, with a position of its own for either",
    "alibi": "attention biases that grow with the distance",
    "learned": "position embeddings added to token embeddings",
    "none": "no positions",
    OTHER: _NO_KERNEL,
}
HEAD_DIM_MULTIPLE: Mapping[str, int] = {
    "rope-neox": 2,
    "rope-neox-ntk": 2,
    "rope-neox-or-alibi": 2,
    "rope-half-interleaved": 4,
    "rope-2d": 4,
}
"""Position encoding -> what head_dim must be a multiple of."""
KERNELS: Mapping[str, Mapping[str, str]] = {"norm": NORMS, "activation": ACTIVATIONS, "position": POSITIONS}
"""Field of the card -> its allowed names and what they mean."""


def base_slot(slot: str) -> str:
    """A slot without the number of its part: ``qkv`` of ``qkv.1``."""
    return slot.partition(".")[0]

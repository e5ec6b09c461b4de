"""Names of the standard decoder, which a card may use: its slots, and what its kernels compute.

The one list of them; the plugin guide shows it, and a card that uses another name is not valid.
"""

from __future__ import annotations

from collections.abc import Mapping

SLOTS: Mapping[str, str] = {
    "ln": "weight of the norm before attention",
    "ln_bias": "its bias",
    "qkv": "queries, keys and values: packed, or apart as `qkv.0`, `qkv.1`, `qkv.2`",
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
"""Slot -> the tensor that belongs there. A number after a dot is a part of the slot."""

OUTER_SLOTS: Mapping[str, str] = {
    "embed": "vectors of tokens",
    "positions": "vectors of positions",
    "embed_ln": "weight of the norm of token vectors",
    "embed_ln_bias": "its bias",
    "project_in": "projection of token vectors to the width of the layers",
    "project_out": "projection back to the width of token vectors",
    "final_ln": "weight of the norm after the layers",
    "final_ln_bias": "its bias",
    "head": "output head; none = the token vectors, transposed",
}
"""Slots of the tensors outside the layers."""

NEEDED = frozenset({"ln", "qkv", "out", "ffn_ln", "ffn1", "ffn2"})
"""Slots of a layer without which there is no fused path."""

NEEDED_OUTSIDE = frozenset({"embed"})
"""Slots outside the layers without which there is none."""

OTHER = "other"
_NO_KERNEL = "another, for which the fused decoder has no kernel: the family has no fused path"

NORMS: Mapping[str, str] = {
    "rmsnorm": "x / sqrt(mean(x^2) + eps) * weight",
    "layernorm": "mean taken away too, and a bias",
    OTHER: _NO_KERNEL,
}
ACTIVATIONS: Mapping[str, str] = {
    "swiglu": "silu(gate) * up, which needs both parts of `ffn1`",
    "gelu": "x * Phi(x)",
    "gelu-tanh": "its approximation with tanh, `gelu_new` and `gelu_pytorch_tanh` in config.json",
    "relu": "max(x, 0)",
    OTHER: _NO_KERNEL,
}
POSITIONS: Mapping[str, str] = {
    "rope-neox": "rotation that pairs element i of a head with element i + head_dim/2",
    "rope-neox-ntk": "the same with a base that grows with the length, and scaled queries",
    "rope-neox-or-alibi": "one or the other, as config.json says",
    "rope-half-interleaved": "rotation of the first half of each head, in neighbouring pairs",
    "rope-2d": "each half of a head turned by a position of its own",
    "alibi": "penalties that grow with the distance",
    "learned": "vectors added to those of the tokens",
    "none": "positions do not enter",
    OTHER: _NO_KERNEL,
}
ROTATED: Mapping[str, int] = {
    "rope-neox": 2,
    "rope-neox-ntk": 2,
    "rope-neox-or-alibi": 2,
    "rope-half-interleaved": 4,
    "rope-2d": 4,
}
"""Position encoding that turns elements of a head in pairs -> what the width of a head must be a multiple of."""
KERNELS: Mapping[str, Mapping[str, str]] = {"norm": NORMS, "activation": ACTIVATIONS, "position": POSITIONS}
"""Field of the card -> the names that it may have and what they stand for."""


def place(slot: str) -> str:
    """A slot without the number of its part."""
    return slot.partition(".")[0]

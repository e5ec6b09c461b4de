"""Names of the standard decoder, which a card may use: its slots, and what its kernels compute.

The one list of them; the plugin guide shows it, and a card that uses another name is not valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmctl.capabilities import METHODS, Unsupported

if TYPE_CHECKING:
    from llmctl.card import Family

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
KERNELS: Mapping[str, Mapping[str, str]] = {"norm": NORMS, "activation": ACTIVATIONS, "position": POSITIONS}
"""Field of the card -> the names that it may have and what they stand for."""


def fills_the_standard_decoder(card: Family) -> bool:
    """Whether the rows of a card have every slot that a fused path needs."""
    return {place(param.slot) for param in card.params} >= NEEDED | NEEDED_OUTSIDE


def without_kernel(card: Family) -> list[str]:
    """The fields of a card that say ``other``."""
    return [field for field in KERNELS if getattr(card, field) == OTHER]


def place(slot: str) -> str:
    """A slot without the number of its part."""
    return slot.partition(".")[0]


def problems(card: Family) -> list[str]:
    """Names on a card that nobody knows, and tensors that the fused decoder would pass over; a line each."""
    lines = []
    for field, known in KERNELS.items():
        if getattr(card, field) not in known:
            lines.append(f"{field}={getattr(card, field)!r} is unknown; known: {', '.join(known)}")
    lines += [
        f"claims: {method!r} is no method; known: {', '.join(METHODS)}" for method in card.claims.keys() - METHODS
    ]
    for param in card.params:
        _, dot, part = param.slot.partition(".")
        inside = "{layer}" in param.name
        known, where = (SLOTS, "in a layer") if inside else (OUTER_SLOTS, "outside the layers")
        if param.slot and (place(param.slot) not in known or (dot and not (inside and part.isdigit()))):
            parts = ", with .0, .1 for parts" if inside else ""
            lines.append(f"{param.name}: slot={param.slot!r} is unknown {where}; known: {', '.join(known)}{parts}")
    if fills_the_standard_decoder(card) and not isinstance(card.claims.get("fused"), Unsupported):
        lines += [
            f"{param.name} has no slot, so that the fused decoder would leave it out; give it one, as the others have, or "
            "say claims={'fused': Unsupported('why')}"
            for param in card.params
            if not param.slot
        ]
    return lines

"""Capability states and the question whether a family offers a method.

A card *claims* only what differs from what its table implies; `state` joins the two. Evidence from tests is not here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Supported:
    """The method works for the family."""


@dataclass(frozen=True)
class Experimental:
    """The method runs; the note says what to beware of."""

    note: str


@dataclass(frozen=True)
class Unsupported:
    """The method is refused with this reason."""

    reason: str


State = Supported | Experimental | Unsupported

METHODS = {
    "pretrain": "pretraining",
    "sft": "supervised fine-tuning",
    "lora": "LoRA",
    "prefix-tuning": "prefix tuning",
    "dpo": "DPO",
    "quantize": "quantisation",
    "convert": "weight conversion",
    "fused": "fused inference",
    "fused-lora": "LoRA in the fused engine",
    "fused-prefix": "virtual tokens in the fused engine",
    "wint8": "fused inference with 8-bit weights",
    "wint4": "fused inference with 4-bit weights",
    "static": "static export",
    "tensor-parallel": "tensor parallelism",
}
"""Every method a card may make a claim about, with its name in messages."""

FUSED = {
    "fused": (),
    "fused-lora": ("fused", "lora"),
    "fused-prefix": ("fused", "prefix-tuning"),
    "wint8": ("fused",),
    "wint4": ("fused",),
}
"""Methods of the fused engine, and the methods that each of them needs."""

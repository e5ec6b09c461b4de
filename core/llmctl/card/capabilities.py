"""The states of a capability, and the methods that families may support.

A card *claims* only what differs from what its table implies; ``support.state`` joins the two. Evidence from tests is in
``plugins/matrix.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Supported:
    """The method works for the family."""


@dataclass(frozen=True)
class Experimental:
    """The method runs; the note is a warning."""

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
    "quantize": "quantization",
    "convert": "weight conversion",
    "fused": "fused inference",
    "fused-lora": "LoRA in the fused engine",
    "fused-prefix": "virtual tokens in the fused engine",
    "wint8": "fused inference with 8-bit weights",
    "wint4": "fused inference with 4-bit weights",
    "static": "static export",
    "serving": "serving",
    "tensor-parallel": "tensor parallelism",
    "pipeline": "pipeline parallelism",
    "sharding": "sharding",
    "expert-parallel": "expert parallelism",
}
"""Every method that a card may claim, with its name in messages."""

FUSED = {
    "fused": (),
    "quantize": ("fused",),
    "fused-lora": ("fused", "lora"),
    "fused-prefix": ("fused", "prefix-tuning"),
    "wint8": ("fused",),
    "wint4": ("fused",),
}
"""Methods of the fused engine -> the methods that they require."""

"""Capability states and the question whether a family offers a method.

A card *claims* only what differs from what its table implies; `state` joins the two. Evidence from tests is not here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmctl.errors import UnsupportedError

if TYPE_CHECKING:
    from llmctl.card import Family


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


def state(card: Family, method: str) -> State:
    """The state of a method for a family: the card's claim, else what its table implies."""
    if method in card.claims:
        return card.claims[method]
    linears = [
        param for param in card.params if param.slot and "{layer}" in param.name and param.resolved_kind == "linear"
    ]
    if method in ("lora", "quantize") and not linears:
        return Unsupported("the card names no linear layer inside the decoder")
    if method == "prefix-tuning" and not card.prefix_cache:
        return Unsupported("the family keeps no KV cache that virtual tokens could fill")
    if method in FUSED:
        return _fused(card, FUSED[method])
    return Supported()


def _fused(card: Family, needed: Sequence[str]) -> State:
    from llmctl import standard

    for method in needed:
        if isinstance(found := state(card, method), Unsupported):
            return found
    if not standard.fills_the_standard_decoder(card):
        return Unsupported("the card does not fill every slot of the standard decoder")
    if others := standard.without_kernel(card):
        return Unsupported(f"the fused decoder has no kernel for the family's {' and '.join(others)}")
    return Supported()


def require(card: Family, method: str) -> None:
    """Passes when the family offers the method; an experimental one warns with its note.

    Raises:
        UnsupportedError: With the reason that the card gives.
    """
    found = state(card, method)
    if isinstance(found, Unsupported):
        raise UnsupportedError(f"{card.name} does not support {METHODS.get(method, method)}: {found.reason}")
    if isinstance(found, Experimental):
        warnings.warn(
            f"{METHODS.get(method, method)} is experimental for {card.name}: {found.note}", UserWarning, stacklevel=2
        )

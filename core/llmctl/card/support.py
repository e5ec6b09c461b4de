"""Whether a family supports a method, from its card."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmctl.card.capabilities import FUSED, METHODS, Experimental, State, Supported, Unsupported
from llmctl.card.slots import KERNELS, NEEDED, NEEDED_OUTSIDE, OTHER, base_slot
from llmctl.errors import UnsupportedError

if TYPE_CHECKING:
    from llmctl.card.family import Family


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
    if method == "expert-parallel" and not any("{expert}" in param.name for param in card.params):
        return Unsupported("the family has no experts")
    if method in FUSED:
        return _fused(card, FUSED[method])
    return Supported()


def _fused(card: Family, needed: Sequence[str]) -> State:
    for method in needed:
        if isinstance(found := state(card, method), Unsupported):
            return found
    if not fills_decoder(card):
        return Unsupported("the card does not fill every required slot of the fused decoder")
    if others := without_kernel(card):
        return Unsupported(f"the fused decoder has no kernel for the family's {' and '.join(others)}")
    return Supported()


def require(card: Family, method: str) -> None:
    """Checks that the family supports the method; an experimental one warns with its note.

    Raises:
        UnsupportedError: It does not; the message holds the card's reason.
    """
    found = state(card, method)
    if isinstance(found, Unsupported):
        raise UnsupportedError(f"{card.name} does not support {METHODS.get(method, method)}: {found.reason}")
    if isinstance(found, Experimental):
        warnings.warn(
            f"{METHODS.get(method, method)} is experimental for {card.name}: {found.note}", UserWarning, stacklevel=2
        )


def fills_decoder(card: Family) -> bool:
    """Whether the rows of a card fill every required slot of the fused decoder."""
    return {base_slot(param.slot) for param in card.params} >= NEEDED | NEEDED_OUTSIDE


def without_kernel(card: Family) -> list[str]:
    """The fields of a card with the value ``other``."""
    return [field for field in KERNELS if getattr(card, field) == OTHER]

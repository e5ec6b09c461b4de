"""Dims of a tiny model with every kind of layer of its family, for tests and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmctl.card.dims import Dims
from llmctl.card.family import Family

STD = 0.3


SIZES = dict(layers=2, hidden=32, heads=4, head_dim=8, ffn=48, vocab=96, experts=4, max_positions=64)


def tiny_dims(card: Family, changes: Mapping[str, Any] | None = None) -> Dims:
    """Dims of the card's size ``tiny``, else of its first size, scaled down.

    Args:
        card: The family.
        changes: Further values to set, for sizes that only this family has.
    """
    first = "tiny" if "tiny" in card.sizes else next(iter(card.sizes))
    if first == "tiny":
        return card.dims_of(first, **(changes or {}))
    full = card.dims_of(first)
    small = {**SIZES, "kv_heads": 4 if full.get("kv_heads") == full.get("heads") else 2}
    settable = {setting.name for setting in card.settings if setting.key}
    return card.dims_of(first, **{**{name: n for name, n in small.items() if name in settable}, **(changes or {})})

"""A tiny model of any family, from its card alone, in memory or in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.card import Dims, Family

SIZES = dict(layers=2, hidden=32, heads=4, head_dim=8, ffn=48, vocab=96, experts=4, max_positions=64)


def tiny_dims(card: Family, changes: Mapping[str, Any] | None = None) -> Dims:
    """Dims of the card's size ``tiny``, else of its first size with everything made small.

    Args:
        card: The family.
        changes: Settings that must change too, where a family has sizes of its own.
    """
    first = "tiny" if "tiny" in card.sizes else next(iter(card.sizes))
    if first == "tiny":
        return card.dims_of(first, **(changes or {}))
    full = card.dims_of(first)
    small = {**SIZES, "kv_heads": 4 if full.get("kv_heads") == full.get("heads") else 2}
    settable = {setting.name for setting in card.settings if setting.key}
    return card.dims_of(first, **{**{name: n for name, n in small.items() if name in settable}, **(changes or {})})


def write_model(folder: Path, plugin: Any, dims: Dims, seed: int = 0) -> None:
    """Writes ``config.json`` and random weights of a family into an existing folder."""
    import paddle

    from llmctl.checkpoint import save_weights
    from llmctl.checkpoint.model import build

    paddle.seed(seed)
    (folder / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)), encoding="utf-8")
    renames = plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
    save_weights(folder, build(plugin, dims), renames)

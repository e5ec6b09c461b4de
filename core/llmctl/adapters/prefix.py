"""A prefix in memory: keys and values of virtual tokens for each layer, in the order in which models here keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.errors import CheckpointError

Array = NDArray[Any]


@dataclass(frozen=True)
class Prefix:
    """Trained virtual tokens.

    Attributes:
        values: Keys and values [layers, 2, tokens, key-value heads, width of a head].
        base: Path or name of the model it was trained on, as recorded; may be empty.
        record: What llmctl noted about the base; empty for a prefix made elsewhere.
        dtype: Of the values as they are stored.
    """

    values: Array
    base: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    @property
    def tokens(self) -> int:
        """Number of virtual tokens."""
        return int(self.values.shape[2])

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return f"{self.tokens} virtual tokens"


def shape_of(dims: Dims, tokens: int) -> tuple[int, int, int, int, int]:
    """Shape of a prefix's values for a model of these dims. Heads are those of keys, which queries may share."""
    return dims.layers, 2, tokens, dims.get("kv_heads") or dims.heads, dims.head_dim


def to_stored(values: Array, card: Family) -> Array:
    """The values with keys in the order of the original code, as files hold them."""
    order = _key_order(card, values.shape[-1])
    return np.stack([values[:, 0][..., np.argsort(order)], values[:, 1]], axis=1)


def from_stored(values: Array, card: Family) -> Array:
    """The values with keys in the order of the models here."""
    return np.stack([values[:, 0][..., _key_order(card, values.shape[-1])], values[:, 1]], axis=1)


def _key_order(card: Family, width: int) -> Array:
    """Where each element of a key here stands in that of the original code.

    Pairs that rotate together stand side by side there, and half a turned part's width apart here.
    """
    order = np.arange(width)
    if card.position == "rope-half-interleaved":
        half = order[: width // 2]
        order = np.concatenate([half[::2], half[1::2], order[width // 2 :]])
    return order


def compare(folder: Any, found: Mapping[str, Any], expected: Mapping[str, int]) -> None:
    """Passes when a configuration's sizes are those of the base.

    Raises:
        CheckpointError: Lists those that differ.
    """
    lines = [
        f"{key} is {found.get(key)!r}, the base has {value}" for key, value in expected.items()
        if found.get(key) != value
    ]  # fmt: skip
    if lines:
        raise CheckpointError("\n  ".join([f"the prefix in {folder} does not fit the base:", *lines]))

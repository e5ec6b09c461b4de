"""A prefix in memory: keys and values of virtual tokens for each layer, in the order of the KV cache."""

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
    """A prefix.

    Attributes:
        values: Keys and values [layers, 2, tokens, kv_heads, head_dim].
        base: Path or name of its base model, as recorded; may be empty.
        record: Identity of the base model (``base_model.record``); empty for a prefix that llmctl did not write.
        dtype: Data type of the stored values.
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
        """Size of the prefix, for messages."""
        return f"{self.tokens} virtual tokens"


def shape_of(dims: Dims, tokens: int) -> tuple[int, int, int, int, int]:
    """Shape of ``Prefix.values`` for a model of these dims."""
    return dims.layers, 2, tokens, dims.get("kv_heads") or dims.heads, dims.head_dim


def to_stored(values: Array, card: Family) -> Array:
    """The values with keys in the element order of the original implementation, as in files."""
    order = _key_order(card, values.shape[-1])
    return np.stack([values[:, 0][..., np.argsort(order)], values[:, 1]], axis=1)


def from_stored(values: Array, card: Family) -> Array:
    """The values with keys in the element order of llmctl's models."""
    return np.stack([values[:, 0][..., _key_order(card, values.shape[-1])], values[:, 1]], axis=1)


def _key_order(card: Family, width: int) -> Array:
    """Index of each element of a key in the original implementation.

    RoPE rotates neighboring elements together there, and elements half the rotary dim apart here.
    """
    order = np.arange(width)
    if card.position == "rope-half-interleaved":
        half = order[: width // 2]
        order = np.concatenate([half[::2], half[1::2], order[width // 2 :]])
    return order


def compare(folder: Any, found: Mapping[str, Any], expected: Mapping[str, int]) -> None:
    """Checks that the sizes in a configuration are those of the base model.

    Raises:
        CheckpointError: Lists the sizes that differ.
    """
    lines = [
        f"{key}={found.get(key)!r}, but the base model has {value}" for key, value in expected.items()
        if found.get(key) != value
    ]  # fmt: skip
    if lines:
        raise CheckpointError("\n  ".join([f"the prefix in {folder} does not fit the base model:", *lines]))

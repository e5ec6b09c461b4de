"""An adapter in memory: for each layer two small matrices, a scale and, for DoRA, a vector of lengths.

Everything is in paddle's layout: a weight is [in, out], A [in, rank], B [rank, out]. LoRA: https://arxiv.org/abs/2106.09685;
rank-stabilised scale: https://arxiv.org/abs/2312.03732; DoRA: https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def scale_of(alpha: float, rank: int, rank_stabilised: bool) -> float:
    """What the product A B is multiplied by."""
    return alpha / (math.sqrt(rank) if rank_stabilised else rank)


def alpha_of(scale: float, rank: int, rank_stabilised: bool) -> float:
    """The alpha that gives a scale."""
    return round(scale * (math.sqrt(rank) if rank_stabilised else rank), 12)


@dataclass(frozen=True)
class Part:
    """The adapter of one layer.

    Attributes:
        a: A [in, rank].
        b: B [rank, out].
        scale: Factor of A B.
        magnitude: Lengths of the columns of the adapted weight [out]; None = as they come out.
    """

    a: Array
    b: Array
    scale: float
    magnitude: Array | None = None

    @property
    def rank(self) -> int:
        """Columns of A."""
        return int(self.a.shape[1])

    def merged(self, weight: Array) -> Array:
        """The weight [in, out] that does alone what the base and this adapter do together."""
        changed = weight + self.scale * (self.a.astype(weight.dtype) @ self.b.astype(weight.dtype))
        if self.magnitude is None:
            return np.asarray(changed, weight.dtype)
        return np.asarray(changed * (self.magnitude / np.linalg.norm(changed, axis=0)), weight.dtype)


@dataclass(frozen=True)
class Adapter:
    """The parts of an adapter by path of the layer, and what is known of its base.

    Attributes:
        parts: Path on the card -> part.
        rank_stabilised: How ranks and alphas are written down; the scales of the parts are what counts.
        dropout: Of the inputs while it was trained.
        base: Path or name of the model it was trained on, as recorded; may be empty.
        record: What llmctl noted about the base; empty for an adapter made elsewhere.
        dtype: Of the tensors as they are stored.
    """

    parts: Mapping[str, Part]
    rank_stabilised: bool = False
    dropout: float = 0.0
    base: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return f"{len(self.parts)} layers"


def pack(parts: Sequence[Part | None], widths: Sequence[int]) -> Part:
    """One part for a layer that is several side by side: the As beside each other, the Bs as blocks on the diagonal.

    The rank is the sum of the ranks and the result exact.

    Args:
        parts: For each layer in order; None = it has no adapter.
        widths: Outputs of each layer.

    Raises:
        ValueError: Some layers have lengths (DoRA) and others no adapter, or the scales differ.
    """
    there = [part for part in parts if part is not None]
    with_lengths = [part.magnitude for part in there if part.magnitude is not None]
    if with_lengths and len(with_lengths) != len(parts):
        raise ValueError("DoRA needs adapters on all of the layers that are packed into one")
    if len({part.scale for part in there}) != 1:
        raise ValueError("the scales of layers that are packed into one differ")
    b = np.zeros((sum(part.rank for part in there), sum(widths)), there[0].b.dtype)
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            b[row : row + part.rank, column : column + width] = part.b
            row += part.rank
        column += width
    a = np.concatenate([part.a for part in there], axis=1)
    return Part(a, b, there[0].scale, np.concatenate(with_lengths) if with_lengths else None)


def unpack(packed: Part, widths: Sequence[int], ranks: Sequence[int] | None = None) -> list[Part | None]:
    """The parts of layers that are side by side in one: each has its columns of B.

    Args:
        packed: The part of the whole.
        widths: Outputs of each layer.
        ranks: How `pack` stacked them, 0 = no adapter; None = each layer has the whole A.
    """
    parts: list[Part | None] = []
    row = column = 0
    for index, width in enumerate(widths):
        columns = slice(column, column + width)
        column += width
        low, high = (0, packed.rank) if ranks is None else (row, row + ranks[index])
        row = high
        magnitude = None if packed.magnitude is None else packed.magnitude[columns]
        part = Part(packed.a[:, low:high], packed.b[low:high, columns], packed.scale, magnitude)
        parts.append(part if high > low else None)
    return parts

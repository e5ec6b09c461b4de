"""A LoRA adapter in memory: for each layer A, B, a scale and, for DoRA, the magnitude vector; and what it has in place of
tensors of its base (PEFT's ``modules_to_save`` and ``trainable_token_indices``).

Everything is in paddle's layout: a weight is [in, out], A [in, rank], B [rank, out]. LoRA: https://arxiv.org/abs/2106.09685;
rsLoRA: https://arxiv.org/abs/2312.03732; DoRA: https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def scale_of(alpha: float, rank: int, rank_stabilised: bool) -> float:
    """The scale of A B: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
    return alpha / (math.sqrt(rank) if rank_stabilised else rank)


def alpha_of(scale: float, rank: int, rank_stabilised: bool) -> float:
    """The alpha that gives a scale."""
    return round(scale * (math.sqrt(rank) if rank_stabilised else rank), 12)


@dataclass(frozen=True)
class LoraWeights:
    """The adapter of one layer.

    Attributes:
        a: A [in, rank].
        b: B [rank, out].
        scale: Factor of A B.
        magnitude: Column norms of the adapted weight [out] (DoRA); None = plain LoRA.
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
        """The weight [in, out] with the adapter merged into it."""
        merged = weight + self.scale * (self.a.astype(weight.dtype) @ self.b.astype(weight.dtype))
        if self.magnitude is None:
            return np.asarray(merged, weight.dtype)
        return np.asarray(merged * (self.magnitude / np.linalg.norm(merged, axis=0)), weight.dtype)

    def folded(self) -> LoraWeights:
        """The same adapter with scale 1: the scale is multiplied into B."""
        return replace(self, b=self.scale * self.b, scale=1.0)


@dataclass(frozen=True)
class TokenRows:
    """Values of some tokens in an embedding or a head.

    Attributes:
        ids: The tokens, each once.
        values: A row for each, in this order [tokens, hidden].
    """

    ids: tuple[int, ...]
    values: Array

    def same(self, other: TokenRows | None) -> bool:
        """Whether another has the same values of the same tokens, in any order."""
        if other is None or sorted(self.ids) != sorted(other.ids):
            return False
        ours, theirs = np.argsort(self.ids), np.argsort(other.ids)
        return bool(np.array_equal(self.values[ours], other.values[theirs]))


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        layers: Path of the layer on the card -> its adapter.
        rank_stabilised: Whether the alpha in the file follows rsLoRA; computation uses the scales of the layers only.
        dropout: LoRA dropout of its training.
        base: Path or name of its base model, as recorded; may be empty.
        record: Identity of the base model (``base_model.record``); empty for an adapter that llmctl did not write.
        dtype: Data type of the stored tensors.
        tensors: Name on the card -> the whole tensor that takes the place of the base's, with ``shape``, ``dtype`` and
            ``numpy()``; that of an adapter that was read from a file is a ``checkpoint.convert.LazyTensor``.
        tokens: Name of an embedding or a head on the card -> rows that take the place of the base's.
    """

    layers: Mapping[str, LoraWeights]
    rank_stabilised: bool = False
    dropout: float = 0.0
    base: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    tensors: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, TokenRows] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """Size of the adapter, for messages."""
        return ", ".join((f"{len(self.layers)} layers", *self.own))

    @property
    def own(self) -> list[str]:
        """What it has in place of tensors of its base, for messages; empty = nothing, it is low-rank matrices only."""
        rows = [f"{len(rows.ids)} rows of {name}" for name, rows in self.tokens.items()]
        return [*self.tensors, *rows]


def fuse(layers: Sequence[LoraWeights | None], widths: Sequence[int]) -> LoraWeights:
    """The adapter of a fused layer, such as q, k and v in one: As are concatenated, Bs are blocks on the diagonal.

    The result is exact; its rank is the sum of the ranks.

    Args:
        layers: Adapters of the fused layers, in order; None = no adapter.
        widths: Number of outputs of each layer.

    Raises:
        ValueError: Some layers have DoRA and others do not, or the scales differ.
    """
    adapted = [layer for layer in layers if layer is not None]
    magnitudes = [layer.magnitude for layer in adapted if layer.magnitude is not None]
    if magnitudes and len(magnitudes) != len(layers):
        raise ValueError("DoRA needs adapters on all layers that are fused into one")
    if len({layer.scale for layer in adapted}) != 1:
        raise ValueError("the scales of layers that are fused into one differ")
    b = np.zeros((sum(layer.rank for layer in adapted), sum(widths)), adapted[0].b.dtype)
    row = column = 0
    for layer, width in zip(layers, widths, strict=True):
        if layer is not None:
            b[row : row + layer.rank, column : column + width] = layer.b
            row += layer.rank
        column += width
    a = np.concatenate([layer.a for layer in adapted], axis=1)
    return LoraWeights(a, b, adapted[0].scale, np.concatenate(magnitudes) if magnitudes else None)


def split_fused(
    fused: LoraWeights, widths: Sequence[int], ranks: Sequence[int] | None = None
) -> list[LoraWeights | None]:
    """The adapters of the layers in a fused layer: each has its columns of B.

    Args:
        fused: The adapter of the fused layer.
        widths: Number of outputs of each layer.
        ranks: Ranks that ``fuse`` combined, 0 = no adapter; None = every layer has the whole A.
    """
    layers: list[LoraWeights | None] = []
    row = column = 0
    for index, width in enumerate(widths):
        columns = slice(column, column + width)
        column += width
        low, high = (0, fused.rank) if ranks is None else (row, row + ranks[index])
        row = high
        magnitude = None if fused.magnitude is None else fused.magnitude[columns]
        layer = LoraWeights(fused.a[:, low:high], fused.b[low:high, columns], fused.scale, magnitude)
        layers.append(layer if high > low else None)
    return layers

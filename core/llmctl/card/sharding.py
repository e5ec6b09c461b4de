"""How tensors are split over tensor-parallel ranks, and the type of a quantization target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.card.dims import Dims
from llmctl.card.family import Tensor
from llmctl.card.shapes import CUT_SYMBOLS, Axis, Term

UNEVEN = "vocab"
"""The symbol whose units need not divide among ranks: vocabularies have any size."""


@dataclass(frozen=True)
class Parallel:
    """The tensor-parallel degree, and the rank of this process."""

    degree: int = 1
    rank: int = 0


@dataclass(frozen=True)
class Segment:
    """A contiguous part of a split axis: ``outer`` blocks of ``count`` units of ``inner`` elements; units go to ranks.

    Attributes:
        outer: Number of blocks.
        count: Units in a block.
        inner: Elements in a unit.
        replicas: Ranks that share a unit (kv heads, if there are fewer than ranks).
    """

    outer: int
    count: int
    inner: int
    replicas: int = 1

    def held(self, rank: int, degree: int) -> range:
        """The units of a rank; where their number does not divide, the first ranks hold one more."""
        place = rank // self.replicas
        share, more = divmod(self.count, degree // self.replicas)
        first = place * share + min(place, more)
        return range(first, first + share + (place < more))


@dataclass(frozen=True)
class Split:
    """How a tensor is split among ranks.

    Attributes:
        axis: The axis that is split: the last of a linear = column parallel, the first = row parallel.
        symbol: The symbol that is divided, e.g. ``"heads"``; of several, the first.
        segments: Memory layout of the axis.
    """

    axis: int
    symbol: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class QuantTarget:
    """A linear layer to quantize: the name of its weight, and its sizes."""

    name: str
    in_features: int
    out_features: int


def split_of(tensor: Tensor, dims: Dims, degree: int) -> Split | None:
    """How a tensor is split among ``degree`` ranks; None = replicated.

    Raises:
        ValueError: A size does not divide; the message names symbol, size, degree and the allowed degrees.
    """
    symbols = CUT_SYMBOLS if tensor.param.shard is None else tensor.param.shard
    for index, axis in enumerate(tensor.param.axes):
        cut = [symbol for symbol in symbols if symbol in axis.symbols]
        if cut:
            segments = tuple(_segment(term, axis, symbols, dims, degree) for term in axis.terms)
            return Split(index, cut[0], segments)
    return None


def _segment(term: Term, axis: Axis, symbols: Sequence[str], dims: Dims, degree: int) -> Segment:
    where = next((i for i, factor in enumerate(term.factors) if factor in symbols), None)
    if where is None:
        raise ValueError(f"{axis}: the term {'*'.join(map(str, term.factors))} holds no symbol that can be split")
    symbol = str(term.factors[where])
    count = dims[symbol]
    outer = Term(term.factors[:where]).size(dims)
    inner = Term(term.factors[where + 1 :]).size(dims)
    if symbol == "kv_heads" and degree > count and degree % count == 0:
        return Segment(outer, count, inner, replicas=degree // count)
    if count % degree and symbol != UNEVEN:
        divisors = [str(d) for d in range(1, count + 1) if count % d == 0]
        allowed = ", ".join(divisors[:12])
        raise ValueError(f"{symbol}={count} is not divisible by tensor_parallel_degree={degree}; use one of {allowed}")
    return Segment(outer, count, inner)

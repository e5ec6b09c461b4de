"""How tensors are split over tensor-parallel ranks, and which linears are quantised: the types, and the rule of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.card.dims import Dims
from llmctl.card.family import Tensor
from llmctl.card.shapes import CUT_SYMBOLS, Axis, Term


@dataclass(frozen=True)
class Parallel:
    """Place of this process in a tensor-parallel group."""

    degree: int = 1
    rank: int = 0


@dataclass(frozen=True)
class Segment:
    """A stretch of a cut axis: ``outer`` blocks, each of ``count`` units of ``inner`` elements; units go to ranks."""

    outer: int
    count: int
    inner: int
    replicas: int = 1


@dataclass(frozen=True)
class Split:
    """How one tensor is divided among ranks.

    Attributes:
        axis: The axis that is cut: the last of a linear = column parallel, the first = row parallel.
        symbol: The symbol that is divided, e.g. ``"heads"``; of several, the first.
        segments: Memory layout of the axis. ``replicas`` > 1 means that so many ranks share a unit (kv heads fewer than
            ranks).
    """

    axis: int
    symbol: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class QuantTarget:
    """A linear layer to quantise: the name of its weight, and its sizes."""

    name: str
    in_features: int
    out_features: int


def _split(tensor: Tensor, dims: Dims, degree: int) -> Split | None:
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
        raise ValueError(f"{axis}: the term {'*'.join(map(str, term.factors))} holds no symbol that can be cut")
    symbol = str(term.factors[where])
    count = dims[symbol]
    outer = Term(term.factors[:where]).size(dims)
    inner = Term(term.factors[where + 1 :]).size(dims)
    if symbol == "kv_heads" and degree > count and degree % count == 0:
        return Segment(outer, count, inner, replicas=degree // count)
    if count % degree:
        divisors = [str(d) for d in range(1, count + 1) if count % d == 0]
        allowed = ", ".join(divisors[:12])
        raise ValueError(f"{symbol}={count} is not divisible by tensor_parallel_degree={degree}; use one of {allowed}")
    return Segment(outer, count, inner)

"""The seven hooks of a family plugin.

Every hook returns its first result that is not None and has no side effects; paddle is imported only inside
`build_model` and `moe_routing`. Only `describe_family` must be implemented: core's defaults (``defaults.py``) answer
the others from the card. An implementation may accept fewer arguments than the specification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

from llmctl.card import Family
from llmctl.dims import Dims
from llmctl.fused import FusedDecoder

Router = Any
"""A ``paddle.nn.Layer``: ``x_TD -> (weight_TK, expert_TK)``, as ``llmctl.nn.router.SoftmaxTopK``."""

PROJECT = "llmctl"
API = (0, 1)
"""Hook API (major, minor). The major is part of the entry-point group, so a mismatch is known before any import."""
GROUP = f"llmctl.family.v{API[0]}"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


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
class Part:
    """A share of an axis that consists of ``blocks`` equal blocks of ``of`` equal units: in each block, some units.

    Attributes:
        start: First unit of a block.
        stop: Unit after the last.
        of: Units in a block.
        blocks: Number of blocks; 1 = the share is contiguous.
    """

    start: int
    stop: int
    of: int
    blocks: int = 1


@dataclass(frozen=True)
class Rename:
    """A tensor of a file and where it goes, or a part of it that goes into a part of a tensor of the card.

    Parts are of the last axis as paddle stores it: the outputs of a linear.

    Attributes:
        source: Name in the file.
        target: Name in the layer's state dict.
        transpose: The file stores ``[out, in]``, paddle ``[in, out]``.
        part: What is taken of the source; None = all of it.
        place: Where it lies in the target; None = it is the target.
        way: Where files come in several packings, the name of one of them. Its renames are used, for their targets, in a
            file that has a tensor which only this packing has; ``""`` = those of any other file.
    """

    source: str
    target: str
    transpose: bool = False
    part: Part | None = None
    place: Part | None = None
    way: str = ""


@dataclass(frozen=True)
class QuantTarget:
    """A linear layer to quantise: the name of its weight, and its sizes."""

    name: str
    in_features: int
    out_features: int


@hookspec(firstresult=True)
def describe_family() -> Family:  # type: ignore[empty-body]
    """The card. The only hook a plugin must implement."""


@hookspec(firstresult=True)
def build_model(card: Family, dims: Dims, parallel: Parallel, dtype: str) -> Any:
    """A ``paddle.nn.Layer`` whose state dict is exactly ``card.expand(dims)``.

    Default: the class in ``card.modeling``, called with the dims.
    """


@hookspec(firstresult=True)
def tensor_parallel_rules(card: Family, dims: Dims, degree: int) -> Mapping[str, Split]:  # type: ignore[empty-body]
    """Tensor name -> Split; absent = replicated. Default: the axis of the shape that holds a cut symbol.

    Raises:
        ValueError: A size does not divide; the message names symbol, size, degree and what divides.
    """


@hookspec(firstresult=True)
def moe_routing(card: Family, dims: Dims) -> Router | None:
    """A layer ``x_TD -> (weight_TK, expert_TK)``. Default: from ``card.moe``; None for dense families."""


@hookspec(firstresult=True)
def weight_map(card: Family, dims: Dims, source: str) -> Sequence[Rename]:  # type: ignore[empty-body]
    """Renames that cover every tensor of the card once; where a packing of files varies, once in each ``way``.

    ``source`` is ``"torch"`` (default: the card's torch names) or ``"paddlenlp"``, the names and packing of PaddleNLP's
    own files (default: from the card's ``paddlenlp``).
    """


@hookspec(firstresult=True)
def quant_layers(card: Family, dims: Dims, method: str) -> Sequence[QuantTarget]:  # type: ignore[empty-body]
    """Linears to quantise for ``ptq-a8w8``, ``weight-only-int8``, ``weight-only-int4`` or ``gptq``.

    Default: every linear inside the layers; router and head are left out.
    """


@hookspec(firstresult=True)
def fused_graph(card: Family, dims: Dims) -> FusedDecoder:  # type: ignore[empty-body]
    """What the fused engine computes for a model of these dims.

    Default: ``llmctl.graph.standard_decoder``, from the card's slots, kernels and ``decoder``.

    Raises:
        UnsupportedError: It cannot; the message says why.
    """

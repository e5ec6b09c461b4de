"""The seven hooks of a family plugin.

The first result that is not None counts. Hooks have no side effects; paddle is imported only inside `build_model` and
`moe_routing`. Only `describe_family` must be implemented: core's defaults (``defaults.py``) derive the others from the card.
An implementation may accept fewer arguments than the specification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.sharding import Parallel, QuantTarget, Split
from llmctl.card.weight_map import WeightMapping

Router = Any
"""A ``paddle.nn.Layer``: ``x_TD -> (weight_TK, expert_TK)``, as ``llmctl.nn.SoftmaxTopK``."""

PROJECT = "llmctl"
API = (0, 1)
"""Hook API (major, minor). The major is part of the entry-point group, so a mismatch is detected before any import."""
GROUP = f"llmctl.family.v{API[0]}"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def describe_family() -> Family:  # type: ignore[empty-body]
    """The card. The only hook a plugin must implement."""


@hookspec(firstresult=True)
def build_model(card: Family, dims: Dims, parallel: Parallel, dtype: str) -> Any:
    """A ``paddle.nn.Layer`` whose state dict matches ``card.expand(dims)`` exactly.

    Default: the class in ``card.modeling``, called with the dims.
    """


@hookspec(firstresult=True)
def tensor_parallel_rules(card: Family, dims: Dims, degree: int) -> Mapping[str, Split]:  # type: ignore[empty-body]
    """Tensor name -> Split; absent = replicated. Default: the axis of the shape with a symbol that is split.

    Raises:
        ValueError: A size does not divide; the message names symbol, size, degree and the allowed degrees.
    """


@hookspec(firstresult=True)
def moe_routing(card: Family, dims: Dims) -> Router | None:
    """A layer ``x_TD -> (weight_TK, expert_TK)``. Default: from ``card.moe``; None for dense families."""


@hookspec(firstresult=True)
def weight_map(card: Family, dims: Dims, source: str) -> Sequence[WeightMapping]:  # type: ignore[empty-body]
    """Mappings that cover every tensor of the card once; if the packing of files varies, once in each ``variant``.

    ``source`` is ``"torch"`` (default: the card's torch names) or ``"paddlenlp"``, the names and packing of PaddleNLP's own
    files (default: from the card's ``paddlenlp``).
    """


@hookspec(firstresult=True)
def quant_layers(card: Family, dims: Dims, method: str) -> Sequence[QuantTarget]:  # type: ignore[empty-body]
    """Linears to quantize with ``ptq-a8w8``, ``weight-only-int8``, ``weight-only-int4``, ``gptq`` or ``awq``.

    Default: every linear inside the layers, without router and head.
    """


@hookspec(firstresult=True)
def fused_graph(card: Family, dims: Dims) -> DecoderSpec:  # type: ignore[empty-body]
    """What the fused engine computes for a model of these dims.

    Default: ``llmctl.fill_decoder``, from the card's slots, kernels and ``decoder``.

    Raises:
        UnsupportedError: The fused engine does not support the model; the message says why.
    """

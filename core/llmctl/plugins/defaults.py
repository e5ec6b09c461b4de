"""Core's default implementations of the hooks, each derived from the card. A plugin's implementation takes precedence."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.fill_decoder import fill_decoder
from llmctl.card.sharding import Parallel, QuantTarget, Split, split_of
from llmctl.card.weight_map import WeightMapping, map_modules
from llmctl.errors import PluginError, UnsupportedError
from llmctl.plugins.hookspecs import hookimpl


@hookimpl(trylast=True)
def build_model(card: Family, dims: Dims, parallel: Parallel, dtype: str) -> Any:
    if parallel.degree != 1:
        raise UnsupportedError(f"a model of tensor_parallel_degree={parallel.degree} is split after it is built; use 1")
    import paddle

    module, _, name = card.modeling.partition(":")
    layer = getattr(importlib.import_module(module), name, None)
    if layer is None:
        raise PluginError(f"the card of {card.name} says modeling={card.modeling!r}, but {module} has no {name!r}")
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        return layer(dims)
    finally:
        paddle.set_default_dtype(before)


@hookimpl(trylast=True)
def tensor_parallel_rules(card: Family, dims: Dims, degree: int) -> Mapping[str, Split]:
    if degree == 1:
        return {}
    splits = {tensor.name: split_of(tensor, dims, degree) for tensor in card.expand(dims)}
    return {name: split for name, split in splits.items() if split}


@hookimpl(trylast=True)
def moe_routing(card: Family, dims: Dims) -> Any:
    if card.moe is None:
        return None
    from llmctl.nn.moe import SoftmaxTopK

    return SoftmaxTopK(dims.hidden, dims.experts, card.moe)


@hookimpl(trylast=True)
def weight_map(card: Family, dims: Dims, source: str) -> Sequence[WeightMapping]:
    if source == "paddlenlp":
        table = card.paddlenlp(dims) if card.paddlenlp else {}
        return map_modules(card, dims, table, card.paddlenlp_prefix)
    if source != "torch":
        raise ValueError(f"source={source!r} is unknown; known: 'torch', 'paddlenlp'")
    return [WeightMapping(tensor.torch_name, tensor.name, tensor.transpose) for tensor in card.expand(dims)]


@hookimpl(trylast=True)
def quant_layers(card: Family, dims: Dims, method: str) -> Sequence[QuantTarget]:
    known = ("ptq-a8w8", "weight-only-int8", "weight-only-int4", "gptq", "awq")
    if method not in known:
        raise ValueError(f"method={method!r} is unknown; known: {', '.join(known)}")
    return [QuantTarget(t.name, *t.shape) for t in card.expand(dims) if t.kind == "linear" and t.layer is not None]


@hookimpl(trylast=True)
def fused_graph(card: Family, dims: Dims) -> DecoderSpec:
    return fill_decoder(card, dims)

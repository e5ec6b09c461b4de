"""Tensor parallelism: where the ranks of a cut model exchange, which follows from how its card cuts its linears.

A region is a layer whose inside is computed in parts: attention, a feed-forward layer, or a whole mixture of experts. At its
entry all ranks have the same x, and what leaves is the sum of their parts, so that there is one exchange at either end whatever is
inside: any number of projections and experts, adapters, quantized weights. Where a block holds its linears itself, each linear is
half a region.

Inside a region the gradient of a parameter that is not cut (norms of heads, routers, half of each adapter) is a part of a sum. With
sequence parallelism the tokens between regions are divided among the ranks too, and then that holds for all uncut parameters of
the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import paddle

from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.card.sharding import Segment, Split
from llmctl.card.slots import base_slot
from llmctl.checkpoint.partial import Cut
from llmctl.nn.mask import Mask
from llmctl.nn.moe import SparseMLP
from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import Divide, Enter, Join, Leave, ShareGrad, all_reduce_all
from llmctl.parallel.vocabulary import SplitVocabulary, divide_embedding

COLUMNS, ROWS = 1, 0
"""The axis of a linear that is cut: its outputs, which a region begins with, or its inputs, which it ends with."""


def connect(model: Any, card: Family, dims: Dims, cut: Cut, axis: Axis, sequence: bool = False) -> None:
    """Makes the ranks of an axis, each with its parts of a model, compute together what the whole model computes.

    The model gets ``complete_grads``, to be called with all trained weights by name before gradients are used. Call this last,
    after adapters and quantization have replaced layers.

    Args:
        model: A ``CausalLM`` with this rank's parts; layers that another stage of a pipeline holds may be missing.
        card: Its family.
        dims: Dims of the whole model.
        cut: How its parameters are cut, those of adapters included.
        axis: The ranks.
        sequence: Whether tokens are divided between regions, in training.
    """
    layers, splits = dict(model.named_sublayers()), cut.splits
    tensors = [tensor for tensor in card.expand(dims) if parent(tensor.name) in layers]
    blocks = blocks_of(card.expand(dims))
    regions = regions_of(tensors, splits)
    for path, ends in regions.items():
        _surround(layers[path], ends, axis, sequence)
    if sequence:
        _divide_tokens([layers.get(path) for path in (blocks[0], blocks[-1])], axis)
    _divide_vocabulary(model, layers, card.expand(dims), splits, axis)
    # Keys and values of virtual tokens are read by this rank's heads alone.
    partial = (*regions, *(blocks if sequence else ()), "prefix")
    model.complete_grads = _completing(cut, tuple(f"{path}." for path in partial), axis)


def parent(name: str) -> str:
    """Path of the layer that holds a parameter."""
    return name.rpartition(".")[0]


def blocks_of(tensors: Iterable[Tensor]) -> list[str]:
    """Paths of the blocks of a decoder, in order."""
    found = {tensor.layer: _block(tensor) for tensor in tensors if tensor.layer is not None}
    return [found[layer] for layer in sorted(found)]


def units_of(tensors: Iterable[Tensor]) -> list[str]:
    """Paths of the layers that ZeRO stage 3 makes whole one at a time, in order: embeddings, blocks, output head if it has weights."""
    tensors = list(tensors)
    outer = {base_slot(tensor.slot): parent(tensor.name) for tensor in tensors if tensor.layer is None}
    embed, head = ([outer[slot]] if slot in outer else [] for slot in ("embed", "head"))
    return [*embed, *blocks_of(tensors), *head]


def _block(tensor: Tensor) -> str:
    return f"{tensor.name.partition(f'.{tensor.layer}.')[0]}.{tensor.layer}"


def regions_of(tensors: Iterable[Tensor], splits: Mapping[str, Split]) -> dict[str, set[int]]:
    """Path of each region -> its ends: ``COLUMNS`` where x enters, ``ROWS`` where a sum leaves."""
    tensors = list(tensors)
    mixtures = {tensor.name.rpartition(".experts.")[0] for tensor in tensors if tensor.expert is not None}
    blocks, held = set(blocks_of(tensors)), dict[str, dict[str, int]]()
    for tensor in tensors:
        rule = splits.get(tensor.name)
        if rule is not None and tensor.layer is not None and len(tensor.shape) == 2:
            path = parent(tensor.name)
            within = next((m for m in mixtures if path.startswith(f"{m}.")), parent(path))
            held.setdefault(within, {})[path] = rule.axis
    regions: dict[str, set[int]] = {}
    for within, linears in held.items():
        ends = set(linears.values())
        if within not in blocks and ends == {COLUMNS, ROWS}:
            regions[within] = ends
        else:
            regions.update({path: {end} for path, end in linears.items()})
    return regions


def _surround(layer: Any, ends: set[int], axis: Axis, sequence: bool) -> None:
    """Adds the exchange at the entry and at the exit of a region."""

    def enter(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        return Enter.apply(x, axis, sequence and layer.training), *(_own_heads(value, axis) for value in rest)

    def leave(layer: Any, args: tuple[Any, ...], out: Any) -> Any:
        if isinstance(layer, SparseMLP) and layer.gate.logits_TE is not None:
            # The balancing loss, which every rank computes, adds to a gradient that is summed over ranks.
            layer.gate.logits_TE = ShareGrad.apply(layer.gate.logits_TE, axis)
        return Leave.apply(out, axis, sequence and layer.training)

    if COLUMNS in ends:
        layer.register_forward_pre_hook(enter)
    if ROWS in ends:
        layer.register_forward_post_hook(leave)


def _own_heads(value: Any, axis: Axis) -> Any:
    """An argument of attention; a mask has the slopes of this rank's heads."""
    return value.of_heads(axis.rank, axis.size) if isinstance(value, Mask) else value


def _divide_tokens(ends: list[Any], axis: Axis) -> None:
    """Divides the tokens before the first block, and joins them after the last; either may be missing here."""
    first, last = ends

    def divide(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (Divide.apply(args[0], axis), *args[1:]) if layer.training else args

    def join(layer: Any, args: tuple[Any, ...], out: Any) -> Any:
        return Join.apply(out, axis) if layer.training else out

    if first is not None:
        first.register_forward_pre_hook(divide)
    if last is not None:
        last.register_forward_post_hook(join)


def _divide_vocabulary(
    model: Any, layers: Mapping[str, Any], tensors: Iterable[Tensor], splits: Mapping[str, Split], axis: Axis
) -> None:
    """Divides the embedding of tokens and the output head, if their card does."""
    outer = [t.name for t in tensors if t.layer is None and t.name in splits and splits[t.name].symbol == "vocab"]
    tables = [name for name in outer if splits[name].axis == ROWS]
    for name in tables:
        if parent(name) in layers:
            divide_embedding(layers[parent(name)], shares_of(splits[name], axis)[axis.rank], axis)
    # Without a head of its own the embedding is the head too.
    heads = [name for name in outer if splits[name].axis == COLUMNS] or tables
    if heads:
        model.vocabulary = SplitVocabulary(model.vocabulary.scores, shares_of(splits[heads[0]], axis), axis)
        model.logits = model.vocabulary.logits


def shares_of(rule: Split, axis: Axis) -> list[range]:
    """The tokens of each rank."""
    (segment,) = rule.segments
    return [segment.held(rank, axis.size) for rank in range(axis.size)]


def _completing(cut: Cut, inside: tuple[str, ...], axis: Axis) -> Callable[[Mapping[str, paddle.Tensor]], None]:
    """Completes the gradients that are parts of sums over the ranks of an axis."""
    splits, never = cut.splits, cut.splits.keys() | cut.first_only

    @paddle.no_grad()
    def complete(weights: Mapping[str, paddle.Tensor]) -> None:
        held = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        all_reduce_all([grad for name, grad in held.items() if name not in never and name.startswith(inside)], axis)
        shared = {name: splits[name] for name in held if name in splits and _replicated(splits[name])}
        wholes = {name: _spread(held[name], rule, axis) for name, rule in shared.items()}
        all_reduce_all(wholes.values(), axis)
        for name, whole in wholes.items():
            paddle.assign(_taken(held[name], whole, shared[name], axis), output=held[name])

    return complete


def _replicated(rule: Split) -> bool:
    return any(segment.replicas > 1 for segment in rule.segments)


def _stretches(rule: Split, axis: Axis) -> list[tuple[Segment, int, int]]:
    """The segments of a cut axis, with where this rank's part of each begins and ends."""
    found, start = [], 0
    for segment in rule.segments:
        stop = start + segment.outer * len(segment.held(axis.rank, axis.size)) * segment.inner
        found.append((segment, start, stop))
        start = stop
    return found


def _spread(grad: paddle.Tensor, rule: Split, axis: Axis) -> paddle.Tensor:
    """This rank's parts of the units that ranks share, [units, ...], at their places among all units; zeros elsewhere."""
    moved = grad.moveaxis(rule.axis, 0)
    wholes = []
    for segment, start, stop in _stretches(rule, axis):
        if segment.replicas > 1:
            held = segment.held(axis.rank, axis.size)
            part = moved[start:stop].reshape([segment.outer, len(held), -1]).transpose([1, 0, 2])
            whole = paddle.zeros([segment.count, *part.shape[1:]], grad.dtype)
            whole[held.start : held.stop] = part
            wholes.append(whole.reshape([-1]))
    return paddle.concat(wholes)


def _taken(grad: paddle.Tensor, sums: paddle.Tensor, rule: Split, axis: Axis) -> paddle.Tensor:
    """The gradient with the sums of the units that ranks share, which ``_spread`` laid out."""
    moved = grad.moveaxis(rule.axis, 0)
    parts, at = [], 0
    for segment, start, stop in _stretches(rule, axis):
        part = moved[start:stop]
        if segment.replicas > 1:
            held = segment.held(axis.rank, axis.size)
            each = part.size // len(held)
            whole = sums[at : at + segment.count * each].reshape([segment.count, segment.outer, -1])
            part = whole[held.start : held.stop].transpose([1, 0, 2]).reshape(part.shape)
            at += segment.count * each
        parts.append(part)
    return paddle.concat(parts).moveaxis(0, rule.axis)

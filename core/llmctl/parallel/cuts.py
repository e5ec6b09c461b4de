"""Which layers each part of a pipeline has, and with them which tensors of the card. Nothing here imports paddle."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.errors import ConfigError

BEFORE = frozenset({"embed", "positions", "embed_ln", "embed_ln_bias", "project_in"})
AFTER = frozenset({"project_out", "final_ln", "final_ln_bias", "head"})
"""Slots of the tensors before and after the layers."""


@dataclass(frozen=True)
class Cuts:
    """The parts that a model's layers are divided into, in their order.

    Attributes:
        layers: Numbers of the layers of each part; none is empty.
        stages: Number of stages. Stage s has the parts s, s + stages, ...
        holders: Name of every tensor of the card -> the parts that have it: two have a table that is embedding and head.
    """

    layers: tuple[range, ...]
    stages: int
    holders: Mapping[str, tuple[int, ...]]

    def parts(self, stage: int) -> tuple[int, ...]:
        """The parts of a stage."""
        return tuple(range(stage, len(self.layers), self.stages))

    def names(self, stage: int) -> frozenset[str]:
        """The tensors of the card that a stage has."""
        return frozenset(name for name, parts in self.holders.items() if any(p % self.stages == stage for p in parts))

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The tensors that several stages have."""
        found = {name: {part % self.stages for part in parts} for name, parts in self.holders.items()}
        return tuple(name for name, stages in found.items() if len(stages) > 1)


def cut(card: Family, dims: Dims, pipeline: int, stages: Sequence[int] = (), chunks: int = 1) -> Cuts:
    """Divides the layers of a model.

    Args:
        card: The family.
        dims: The model's dims.
        pipeline: Number of stages.
        stages: Layers of each; empty = the costliest part is as cheap as possible, embedding and head counted.
        chunks: Parts of each stage.

    Raises:
        ConfigError: The card does not say whether a tensor stands before or after the layers.
    """
    tensors = card.expand(dims)
    layers = layers_of(card, dims, pipeline, stages, chunks)
    part_of = {layer: part for part, numbers in enumerate(layers) for layer in numbers}
    tied = all(tensor.slot != "head" for tensor in tensors)
    return Cuts(layers, pipeline, {t.name: _holders(card, t, part_of, len(layers) - 1, tied) for t in tensors})


def layers_of(
    card: Family, dims: Dims, pipeline: int, stages: Sequence[int] = (), chunks: int = 1
) -> tuple[range, ...]:
    """The layers of each part; arguments as for ``cut``."""
    sizes = list(stages) or _balanced(_costs(card, dims, card.expand(dims)), pipeline * chunks)
    starts = [sum(sizes[:part]) for part in range(len(sizes))]
    layers = tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))
    assert layers[-1].stop == int(dims.layers), f"{sizes} are not the {dims.layers} layers of the model"
    return layers


def _holders(card: Family, tensor: Tensor, part_of: Mapping[int, int], last: int, tied: bool) -> tuple[int, ...]:
    if tensor.layer is not None:
        return (part_of[tensor.layer],)
    if tensor.slot == "embed" and tied:
        return (0, last)
    if tensor.slot in BEFORE:
        return (0,)
    if tensor.slot in AFTER:
        return (last,)
    raise ConfigError(
        f"parallel.pipeline: the card of {card.name} does not say whether {tensor.name} stands before or after the layers; leave "
        "out parallel.pipeline, or give the tensor a slot on the card"
    )


def _costs(card: Family, dims: Dims, tensors: Sequence[Tensor]) -> list[float]:
    """The parameters of each layer that a token passes; the first and last have those before and after the layers too."""
    costs = [0.0] * int(dims.layers)
    for tensor in tensors:
        used = 1.0 if tensor.expert is None or card.moe is None else card.moe.top_k / int(dims.experts)
        ends = (tensor.slot in BEFORE) * [0] + (tensor.slot in AFTER) * [len(costs) - 1]
        for layer in ends if tensor.layer is None else [tensor.layer]:
            costs[layer] += used * tensor.size
    if all(tensor.slot != "head" for tensor in tensors):
        costs[-1] += sum(tensor.size for tensor in tensors if tensor.slot == "embed")
    return costs


def _balanced(costs: Sequence[float], parts: int) -> list[int]:
    """Layers of each part, one at least: the largest cost of a part is the smallest possible, the others are near the mean."""
    cap = _cap(costs, parts)
    sizes: list[int] = []
    rest = list(costs)
    for left in range(parts, 1, -1):
        mean = sum(rest) / left
        held = [cost for cost in itertools.accumulate(rest[: len(rest) - left + 1]) if cost <= cap]
        size = 1 + min(range(len(held)), key=lambda at: abs(held[at] - mean))
        # More layers here leave fewer to the other parts, so that the first size that suffices is the nearest.
        while _needed(rest[size:], cap) > left - 1:
            size += 1
        sizes.append(size)
        rest = rest[size:]
    return [*sizes, len(rest)]


def _cap(costs: Sequence[float], parts: int) -> float:
    """The smallest cost, but for rounding, that none of so many parts has to exceed."""
    low, high = max(costs), sum(costs)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _needed(costs, middle) <= parts else (middle, high)
    return high * (1 + 1e-12)


def _needed(costs: Sequence[float], cap: float) -> int:
    """How many parts there are if each takes as many layers as it may."""
    parts, held = 0, cap
    for cost in costs:
        if held + cost > cap:
            parts, held = parts + 1, 0.0
        held += cost
    return parts

"""Weights of which a rank keeps a slice (ZeRO stage 3). They have values only while these are needed: no rank holds a whole model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import paddle

from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import all_gather
from llmctl.parallel.slicing import Slicing


@dataclass
class Kept:
    """What a rank keeps of a weight.

    Attributes:
        slice: Its slice; of a trained weight the one that the optimizer updates.
        total: The sum of all elements when the slice was first taken.
        axis: The ranks that share the weight.
    """

    slice: Any
    total: float
    axis: Axis


def kept_of(weight: paddle.Tensor) -> Kept | None:
    """What this rank keeps of a weight; None = it has values always."""
    return getattr(weight, "kept", None)


@paddle.no_grad()
def keep(weight: Any, axis: Axis) -> None:
    """Keeps this rank's slice of the values of a weight, which are freed.

    Args:
        weight: The weight, with values.
        axis: The ranks that share it.
    """
    own = Slicing(tuple(weight.shape), axis.size).rows(weight.detach())[axis.rank]
    kept = kept_of(weight)
    if kept is None:
        weight.kept = Kept(own.clone(), total(weight), axis)
    else:
        kept.slice.set_value(own.astype(kept.slice.dtype))
    weight._clear_data()


@contextlib.contextmanager
def needed(layer: Any) -> Iterator[None]:
    """Context in which all weights of a layer have values, which may be set. All ranks that share them enter it."""
    dropped = [w for w in layer.state_dict().values() if kept_of(w) is not None and not w._is_initialized()]
    for weight in dropped:
        fill([weight], [weight.kept.slice], weight.kept.axis)
    yield
    for weight in dropped:
        keep(weight, weight.kept.axis)


@paddle.no_grad()
def fill(weights: Sequence[Any], slices: Sequence[Any], axis: Axis) -> None:
    """Gives weights of one type their values, from the slices of all ranks, by one call."""
    own = [one.astype(weight.dtype) for weight, one in zip(weights, slices, strict=True)]
    values = gathered(own, [Slicing(tuple(weight.shape), axis.size) for weight in weights], axis)
    for weight, whole in zip(weights, values, strict=True):
        whole._share_buffer_to(weight)


def gathered(slices: Sequence[paddle.Tensor], slicing: Sequence[Slicing], axis: Axis) -> Iterator[paddle.Tensor]:
    """Whole tensors of one type, from the slices of all ranks, by one call."""
    rows = all_gather(paddle.concat(list(slices)), axis).reshape([axis.size, -1])
    parts = paddle.split(rows, [one.length for one in slicing], axis=1)
    return (one.whole(part) for one, part in zip(slicing, parts, strict=True))


def total(weight: paddle.Tensor) -> float:
    """The sum of all elements of a weight, also of one whose values are freed: as it was at first."""
    kept = kept_of(weight)
    return float(weight.astype("float64").sum()) if kept is None else kept.total

"""What the ranks of an axis exchange: collective operations, and layers that exchange in a forward and in a backward pass.

Every call goes through ``TRAFFIC``, which counts calls and bytes and knows what this rank waits in. On an axis of one rank
nothing is sent, nor is a tensor without elements.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.autograd import PyLayer
from paddle.distributed import ReduceOp, stream

from llmctl.nn.arrays import to_numpy
from llmctl.parallel.axis import Axis
from llmctl.parallel.faults.watch import waiting
from llmctl.parallel.rank import other_ranks

BUCKET = 32 << 20
"""Bytes of small tensors that are sent together."""

OPS = {"sum": ReduceOp.SUM, "max": ReduceOp.MAX}

DTYPES, MOST_AXES = ("float32", "float64", "int64"), 3
"""Types, and number of dimensions, of arrays that can be broadcast."""


class Traffic:
    """What this rank has sent.

    Attributes:
        calls: Number of calls, by (axis, operation).
        bytes: Bytes of the whole tensors, by (axis, operation): what is summed, the result of a gather, the rows that are
            sent. An algorithm sends a multiple of it.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()

    @contextlib.contextmanager
    def call(self, operation: str, axis: Axis, whole: int) -> Iterator[None]:
        """Counts a call that moves ``whole`` bytes; the call is made inside.

        Raises:
            PeerLost: It failed: another rank did not come.
        """
        key = axis.name, operation
        self.calls[key] += 1
        self.bytes[key] += whole
        what = f"{operation} no. {self.calls[key]} over {axis.name}"
        with waiting(what), other_ranks(what):
            yield

    def clear(self) -> None:
        """Counts from zero."""
        self.calls.clear()
        self.bytes.clear()


TRAFFIC = Traffic()


def size_of(x: paddle.Tensor) -> int:
    """Bytes of a tensor."""
    return int(x.size) * int(x.element_size())


def all_reduce(x: paddle.Tensor, axis: Axis, op: str = "sum") -> paddle.Tensor:
    """The sum, or the largest values, over all ranks, written into x where it is contiguous.

    Args:
        x: Tensor of the same shape on all ranks.
        axis: The ranks.
        op: ``"sum"`` or ``"max"``.
    """
    if axis.size == 1 or not x.size:
        return x
    x = x.contiguous()
    with TRAFFIC.call("all_reduce", axis, size_of(x)):
        stream.all_reduce(x, OPS[op], axis.group, use_calc_stream=True)
    return x


@paddle.no_grad()
def all_reduce_all(tensors: Iterable[paddle.Tensor], axis: Axis, limit: int = BUCKET) -> None:
    """Replaces tensors by their sums over all ranks, several in one call; all ranks have the same ones in the same order."""
    if axis.size == 1:
        return
    for bucket in buckets(tensors, limit):
        flat = all_reduce(paddle.concat([x.reshape([-1]) for x in bucket]), axis)
        for x, part in zip(bucket, paddle.split(flat, [x.size for x in bucket]), strict=True):
            paddle.assign(part.reshape(x.shape), output=x)


def buckets(tensors: Iterable[paddle.Tensor], limit: float = BUCKET) -> Iterator[list[paddle.Tensor]]:
    """Tensors of one type each, in order, of about ``limit`` bytes."""
    bucket: list[paddle.Tensor] = []
    held = 0
    for x in tensors:
        if bucket and (x.dtype != bucket[0].dtype or held >= limit):
            yield bucket
            bucket, held = [], 0
        bucket.append(x)
        held += size_of(x)
    if bucket:
        yield bucket


def all_gather(x: paddle.Tensor, axis: Axis, dim: int = 0) -> paddle.Tensor:
    """The tensors of all ranks, joined in the order of the ranks.

    Args:
        x: Tensor of the same shape on all ranks.
        axis: The ranks.
        dim: The dimension along which they are joined.
    """
    if axis.size == 1:
        return x
    x = x.contiguous()
    parts = paddle.empty([axis.size * x.shape[0], *x.shape[1:]], x.dtype)
    if x.size:
        with TRAFFIC.call("all_gather", axis, size_of(parts)):
            stream.all_gather(parts, x, axis.group, use_calc_stream=True)
    return parts if dim == 0 else paddle.concat(paddle.split(parts, axis.size), axis=dim)


def reduce_scatter(x: paddle.Tensor, axis: Axis, dim: int = 0) -> paddle.Tensor:
    """This rank's stretch of the sum over all ranks.

    Args:
        x: Tensor of the same shape on all ranks.
        axis: The ranks; their number divides the dimension.
        dim: The dimension that is divided.
    """
    if axis.size == 1:
        return x
    x = (x if dim == 0 else paddle.concat(paddle.split(x, axis.size, axis=dim))).contiguous()
    own = paddle.empty([x.shape[0] // axis.size, *x.shape[1:]], x.dtype)
    with TRAFFIC.call("reduce_scatter", axis, size_of(x)):
        stream.reduce_scatter(own, x, ReduceOp.SUM, axis.group, use_calc_stream=True)
    return own


def all_to_all(x: paddle.Tensor, sent: Sequence[int], received: Sequence[int], axis: Axis) -> paddle.Tensor:
    """Rows to their ranks, and the rows that come, in the order of the ranks that send them.

    Args:
        x: Rows [sum(sent), ...]: first those for rank 0.
        sent: Rows for each rank.
        received: Rows from each rank.
        axis: The ranks.
    """
    if axis.size == 1:
        return x
    came = paddle.empty([sum(received), *x.shape[1:]], x.dtype)
    with TRAFFIC.call("all_to_all", axis, size_of(x)):
        stream.alltoall_single(
            came, x.contiguous(), list(received), list(sent), axis.group, use_calc_stream=True
        )  # fmt: skip
    return came


def broadcast(x: paddle.Tensor, axis: Axis, source: int = 0) -> paddle.Tensor:
    """The tensor of one rank, written into x.

    Args:
        x: Contiguous tensor of the same shape on all ranks.
        axis: The ranks.
        source: Place of that rank on the axis.
    """
    if axis.size > 1:
        with TRAFFIC.call("broadcast", axis, size_of(x)):
            stream.broadcast(x, axis.group.ranks[source], axis.group, use_calc_stream=True)
    return x


def broadcast_array(array: np.ndarray | None, axis: Axis, source: int = 0) -> np.ndarray | None:
    """The array of one rank, on all of them, in two calls: its type and shape, and its values.

    Args:
        array: The array, on the rank that has it; what others pass is ignored.
        axis: The ranks.
        source: Place of that rank on the axis.
    """
    if axis.size == 1:
        return array
    own = axis.rank == source
    head = np.zeros(MOST_AXES + 2, np.int64)
    if own:
        assert array is not None
        head[: array.ndim + 2] = DTYPES.index(array.dtype.name), array.ndim, *array.shape
    kind, axes, *shape = broadcast(paddle.to_tensor(head), axis, source).tolist()
    value = paddle.to_tensor(array) if own else paddle.empty(shape[:axes], DTYPES[kind])
    return to_numpy(broadcast(value, axis, source))


def own_part(x: paddle.Tensor, axis: Axis, dim: int) -> paddle.Tensor:
    """This rank's stretch of a tensor; the number of ranks divides the dimension."""
    step = x.shape[dim] // axis.size
    return paddle.slice(x, [dim], [axis.rank * step], [(axis.rank + 1) * step]).contiguous()


TOKENS = 1
"""The dimension of tokens in x_BTD, which sequence parallelism divides."""


class Enter(PyLayer):
    """The entry of a region whose ranks compute parts of one sum: the same x for all, and the sum of their gradients.

    With divided tokens the ranks' tokens are joined.
    """

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, axis: Axis, sequence: bool = False) -> paddle.Tensor:
        ctx.axis, ctx.sequence = axis, sequence
        return all_gather(x, axis, TOKENS) if sequence else x.clone()

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        if ctx.sequence:
            return reduce_scatter(grad, ctx.axis, TOKENS)
        return all_reduce(grad.clone(), ctx.axis)


class Leave(PyLayer):
    """The exit of such a region: the sum of the ranks' parts; with divided tokens, of this rank's tokens."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, axis: Axis, sequence: bool = False) -> paddle.Tensor:
        ctx.axis, ctx.sequence = axis, sequence
        return reduce_scatter(x, axis, TOKENS) if sequence else all_reduce(x.clone(), axis)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return all_gather(grad, ctx.axis, TOKENS) if ctx.sequence else grad.clone()


class Divide(PyLayer):
    """This rank's stretch of x, which all ranks have; x is whole again in ``Join``."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, axis: Axis, dim: int = TOKENS) -> paddle.Tensor:
        ctx.axis, ctx.dim = axis, dim
        return own_part(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return all_gather(grad, ctx.axis, ctx.dim)


class Join(PyLayer):
    """The stretches of all ranks, for a computation that all of them repeat."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, axis: Axis, dim: int = TOKENS) -> paddle.Tensor:
        ctx.axis, ctx.dim = axis, dim
        return all_gather(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return own_part(grad, ctx.axis, ctx.dim)


class ShareGrad(PyLayer):
    """x, with a gradient divided by the number of ranks, for a place where the gradients of ranks are summed that all
    compute the same."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, axis: Axis) -> paddle.Tensor:
        ctx.size = axis.size
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return grad / ctx.size


class Exchange(PyLayer):
    """``all_to_all``, whose gradients go back where the rows came from.

    An anchor, which requires a gradient, keeps the exchange in the backward pass of every rank, whether or not rows of it were
    used: the others wait for it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: paddle.Tensor, anchor: paddle.Tensor, sent: list[int], received: list[int], axis: Axis
    ) -> paddle.Tensor:
        ctx.back = received, sent, axis
        return all_to_all(x, sent, received, axis)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        return all_to_all(grad, *ctx.back), paddle.zeros([1], grad.dtype)

"""How fast collectives are on this machine: seconds by operation and size, and the connection that explains them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import paddle

from llmctl.parallel import collectives
from llmctl.parallel.axis import Axis


@dataclass(frozen=True)
class Sample:
    """One measurement.

    Attributes:
        op: The operation.
        size: Bytes of the whole tensor, as ``costs.step`` counts them.
        seconds: Median of the rounds, of the slowest rank.
    """

    op: str
    size: int
    seconds: float


def samples(axis: Axis, sizes: Sequence[int], rounds: int) -> Iterator[Sample]:
    """Measures every operation with tensors of each size; all ranks of the axis call it.

    Args:
        axis: The ranks.
        sizes: Bytes.
        rounds: Measured calls of each, after one that is not counted.
    """
    for op, call in _calls(axis).items():
        for size in sizes:
            rows = max(1, size // 4 // axis.size) * axis.size
            x = paddle.ones([rows], "float32")
            call(x)
            seconds = []
            for _ in range(rounds):
                collectives.all_reduce(paddle.zeros([1]), axis)
                _finish()
                began = time.perf_counter()
                call(x)
                _finish()
                seconds.append(time.perf_counter() - began)
            slowest = collectives.all_reduce(paddle.to_tensor([statistics.median(seconds)], "float64"), axis, "max")
            yield Sample(op, rows * 4, slowest.item())


def _calls(axis: Axis) -> dict[str, Callable[[paddle.Tensor], object]]:
    def own(x: paddle.Tensor) -> paddle.Tensor:
        return x[: x.shape[0] // axis.size]

    return {
        "all_reduce": lambda x: collectives.all_reduce(x, axis),
        "all_gather": lambda x: collectives.all_gather(own(x), axis),
        "reduce_scatter": lambda x: collectives.reduce_scatter(x, axis),
        "all_to_all": lambda x: collectives.all_to_all(x, *[[x.shape[0] // axis.size] * axis.size] * 2, axis),
    }


def _finish() -> None:
    if paddle.is_compiled_with_cuda():
        paddle.device.synchronize()

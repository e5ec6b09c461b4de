"""Forward and backward passes of a step through the stages of a pipeline, in the order of Paddle's schedules.

The schedule is fleet's (one forward, one backward; interleaved where a stage has several parts); what its stages compute are
functions of ours. Each stage has the batches of the step, so that positions and masks are not sent.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.distributed import fleet
from paddle.distributed.fleet.meta_parallel import (
    PipelineLayer,
    PipelineParallel,
    PipelineParallelWithInterleave,
)
from paddle.distributed.fleet.utils.log_util import set_log_level

from llmctl.parallel import collectives
from llmctl.parallel.axis import Axis
from llmctl.parallel.faults.watch import waiting
from llmctl.parallel.rank import other_ranks
from llmctl.parallel.stage import Stage

Hidden = Callable[[int], tuple[Any, ...]]
"""(number of a pass) -> what the layers give to the loss."""

NewLoss = Callable[[int, tuple[Any, ...]], paddle.Tensor]
"""(number of a pass, what the layers gave) -> the scalar to differentiate."""


class Pipeline:
    """The passes of the ranks of one pipeline.

    Args:
        stage: What this rank computes.
        hybrid: Paddle's ``HybridCommunicateGroup``.
        axis: The stages.
    """

    def __init__(self, stage: Stage, hybrid: Any, axis: Axis) -> None:
        self._stage, self._axis = stage, axis
        self._passes: dict[int, Iterator[int | None]] = {}
        self._hidden: Hidden = lambda number: ()
        self._loss: NewLoss = lambda number, hidden: paddle.zeros([])
        self._done: Callable[[], None] = lambda: None
        self._fleet = self._schedule(hybrid)
        self._count_messages(self._fleet._p2p_helper)
        stage.pipeline = self
        # Both are of this instance alone: the loss is a sum that the caller knows how to weigh, and half gradients are
        # added up between passes.
        self._fleet._broadcast_final_loss = lambda *_: None
        self._fleet._backward_step = self._then_done(self._fleet._backward_step)

    def _schedule(self, hybrid: Any) -> Any:
        parts, several = len(self._stage.cuts.layers), len(self._stage.parts) > 1
        strategy = fleet.DistributedStrategy()
        chosen = {"delay_scale_loss": True, "enable_dynamic_shape": True}
        if several:
            # The only way in which fleet's interleaved schedule takes inputs of changing shapes.
            chosen |= {"overlap_p2p_comm": True, "use_batch_p2p_comm": False}
        strategy.hybrid_configs = {"pp_degree": self._axis.size, "pp_configs": chosen}
        # Activations differ between tensor ranks where they share rows.
        strategy.pipeline_configs = {
            "accumulate_steps": 2 * self._axis.size,
            "micro_batch_size": 1,
            "enable_partial_send_recv": False,
        }
        functions = [self._function(part) for part in range(parts)]
        options: dict[str, Any] = {"num_stages": self._axis.size, "topology": hybrid._topo, "loss_fn": _given}
        set_log_level("WARNING")
        if not several:
            return PipelineParallel(PipelineLayer(layers=functions, **options), hybrid, strategy)
        options |= {"seg_method": f"layer:{_Part.__name__}", "num_virtual_pipeline_stages": len(self._stage.parts)}
        layers = [_Part(function) for function in functions]
        return PipelineParallelWithInterleave(PipelineLayer(layers=layers, **options), hybrid, strategy)

    def _count_messages(self, helper: Any) -> None:
        """Tells ``TRAFFIC`` what fleet sends, and what it waits in."""

        def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(call)
            # A first or last stage, whose flag is set, sends nothing.
            flag = {"send_forward": "pp_last_stage", "send_backward": "pp_first_stage"}.get(name, "")

            def run(*args: Any, **options: Any) -> Any:
                given = signature.bind(*args, **options).arguments
                with contextlib.ExitStack() as stack:
                    for sent in () if given.get(flag) else filter(None, map(_bytes_of, given.values())):
                        stack.enter_context(collectives.TRAFFIC.call("send", self._axis, sent))
                    what = f"{name} over {self._axis.name}"
                    stack.enter_context(waiting(what))
                    stack.enter_context(other_ranks(what))
                    return call(*args, **options)

            return run

        for name in dir(type(helper)):
            if name.startswith(("send_", "recv_")):
                setattr(helper, name, counted(name, getattr(helper, name)))

    def run(self, count: int, hidden: Hidden, loss: NewLoss, done: Callable[[], None]) -> None:
        """Runs all passes, forward and backward.

        Args:
            count: Number of passes.
            hidden: Computes what the layers give; called on every stage, for its part.
            loss: Computes the loss; called on the last stage.
            done: Called after each backward pass of a part.
        """
        self._hidden, self._loss, self._done = hidden, loss, done
        # The interleaved schedule needs some passes: the last step of an epoch may have fewer, and one is repeated for nothing.
        total = count if len(self._stage.parts) == 1 else max(count, 2 * self._axis.size)
        self._passes = {part: iter([*range(count), *[None] * (total - count)]) for part in self._stage.parts}
        self._fleet.accumulate_steps = total
        self._fleet._init_user_hooks()
        self._forget_shapes()
        self._fleet.forward_backward_pipeline(_no_data(), None)

    def _forget_shapes(self) -> None:
        """Drops what stages have said of shapes: it holds for the messages of one run of the schedule, in order."""
        helper = self._fleet._p2p_helper
        helper._send_recv_meta_list.clear()
        helper._dynamic_cnt = 0

    @paddle.no_grad()
    def forward(self, hidden: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...] | None:
        """One pass forward through all parts: what the layers give, on the last stage; None on the others.

        Args:
            hidden: Computes what the layers give; called on every stage, for each of its parts.
        """
        self._forget_shapes()
        helper, found = self._fleet._p2p_helper, None
        for part in self._stage.parts:
            first, last = part == 0, part == len(self._stage.cuts.layers) - 1
            received = helper.recv_forward(first, batch_p2p_comm=False)
            sent = self._stage.run(part, _as_tuple(received), hidden)
            if last:
                found = sent
            else:
                helper.send_forward(_as_sent(sent), False, batch_p2p_comm=False)
        return found

    def broadcast_array(self, array: np.ndarray | None) -> np.ndarray:
        """An array of the last stage, on every stage; what the others pass is ignored."""
        found = collectives.broadcast_array(array, self._axis, self._axis.size - 1)
        assert found is not None
        return found

    def _function(self, part: int) -> Callable[[Any], Any]:
        last = part == len(self._stage.cuts.layers) - 1

        def compute(x: Any) -> Any:
            number = next(self._passes[part])
            received = () if part == 0 else _as_tuple(x)
            found = self._stage.run(part, received, lambda: self._hidden(number or 0))
            if not last:
                return _as_sent(found)
            return _nothing_of(found) if number is None else self._loss(number, found)

        return compute

    def _then_done(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            grads = backward(*args, **options)
            self._done()
            return grads

        return run


class _Part(paddle.nn.Layer):
    """A function as a layer: fleet's interleaved schedule divides layers of one class."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def _given(output: Any, label: Any) -> Any:
    """The loss is the last function's output."""
    return output


def _nothing_of(hidden: Sequence[paddle.Tensor]) -> paddle.Tensor:
    """A loss whose gradients are 0."""
    return paddle.add_n([(x * 0.0).sum() for x in hidden if not x.stop_gradient])


def _no_data() -> Iterator[Any]:
    nothing = paddle.zeros([1])
    return itertools.repeat((nothing, nothing))


def _bytes_of(sent: Any) -> int:
    """Bytes of a tensor or several; 0 of anything else."""
    if isinstance(sent, (tuple, list)):
        return sum(map(_bytes_of, sent))
    return collectives.size_of(sent) if isinstance(sent, paddle.Tensor) else 0


def _as_tuple(received: Any) -> tuple[Any, ...]:
    if received is None:
        return ()
    return tuple(received) if isinstance(received, (tuple, list)) else (received,)


def _as_sent(tensors: Sequence[paddle.Tensor]) -> Any:
    """As fleet sends them: one as it is. The hidden states must ask for a gradient, as the next stage returns one."""
    found = tuple(tensors)
    if paddle.is_grad_enabled() and all(x.stop_gradient for x in found):
        *others, last = found
        last = last.detach()
        last.stop_gradient = False
        found = (*others, last)
    return found[0] if len(found) == 1 else found

"""What the optimizer updates: FP32 master weights of parameters in half types, of which these are rounded copies.

An update is often smaller than the precision of a half type (https://arxiv.org/abs/1710.03740, section 3.1).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import paddle

from llmctl.nn import kernels
from llmctl.parallel.placement import WHOLE, Placement
from llmctl.parallel.ranks import ALONE, Ranks
from llmctl.parallel.slicing import Slicing
from llmctl.train.optim.cpu_offload import Offloaded

HALF = (paddle.float16, paddle.bfloat16)

Complete = Callable[[Mapping[str, Any]], object]
"""Makes gradients whole of which this rank has a part: gets the weights, by name, and changes their ``grad`` in place."""


class MasterWeights:
    """The tensors that the optimizer updates; every rank has all of its parameters.

    Args:
        parameters: Name -> parameter.
        ranks: The processes that train together.
        placement: Where parameters are that several of these share.
        complete: Called before gradients are summed over the rows of all ranks; None = gradients are whole.
        sum_stages: Called once a step with ``tensors``, whose gradients are summed over the stages that have them; None = no
            two stages have the same.
        offload: Whether the optimizer's states are in main memory, FP32 master weights among them.

    Attributes:
        parameters: As given.
        tensors: Name -> the FP32 master weight of a parameter in a half type; other parameters themselves.
        placement: As given.
        offload: As given.
        slicing: Name -> how a parameter is divided into slices, of which ``tensors`` has one; empty = they are not.
        model_slicing: Name -> how a weight of the model is divided into slices, of which ``model_slices`` has one.
    """

    slicing: Mapping[str, Slicing] = MappingProxyType({})
    model_slicing: Mapping[str, Slicing] = MappingProxyType({})

    def __init__(
        self,
        parameters: Mapping[str, paddle.Tensor],
        ranks: Ranks = ALONE,
        placement: Placement = WHOLE,
        complete: Complete | None = None,
        sum_stages: Complete | None = None,
        offload: bool = False,
    ) -> None:
        self.parameters, self.placement, self.offload = parameters, placement, offload
        self._ranks, self._complete, self._sum_stages = ranks, complete, sum_stages
        self._half = {name: p for name, p in parameters.items() if p.dtype in HALF}
        self.tensors: Mapping[str, paddle.Tensor] = {
            name: self._apart(p.detach().astype("float32")) if name in self._half else p
            for name, p in parameters.items()
        }
        self._counted = {name: self._counts(name) for name in parameters}

    def _apart(self, value: paddle.Tensor) -> Any:
        """A weight of the optimizer's own that begins with a value."""
        if self.offload:
            return Offloaded(value)
        return paddle.create_parameter(
            value.shape, value.dtype, default_initializer=paddle.nn.initializer.Assign(value)
        )  # fmt: skip

    @property
    def _divided(self) -> bool:
        """Whether ranks have parts of the weights."""
        topology = self.placement.topology
        return topology.tensor * topology.pipeline * topology.sharding * topology.expert > 1

    def _counts(self, name: str) -> bool | paddle.Tensor:
        """As ``Placement.counted``, with a tensor instead of an array."""
        counted = self.placement.counted(name, self.parameters[name].shape)
        return counted if isinstance(counted, bool) else paddle.to_tensor(counted)

    @paddle.no_grad()
    def accumulate_grads(self) -> None:
        """Adds the gradients of half parameters to those of their master weights, in FP32, and clears them.

        To be called after each backward pass.
        """
        for name, parameter in self._half.items():
            if parameter.grad is None:
                continue
            master, grad = self.tensors[name], parameter.grad.astype("float32")
            master.grad = grad if master.grad is None else master.grad + grad
            parameter.clear_gradient(False)

    def sum_grads(self) -> None:
        """Sums the gradients over the rows of all ranks; to be called after the last backward pass of a step."""
        if self._complete:
            self._complete(self.tensors)
        self._sum_copies()

    def _sum_copies(self) -> None:
        """Sums gradients over stages, and over ranks, that hold the same."""
        if self._sum_stages:
            self._sum_stages(self.tensors)
        for sharing, names in self.placement.alike(self.tensors).items():
            self._ranks.sum_grads([self.tensors[name] for name in names], sharing.copies)

    def norm(self) -> float:
        """L2 norm of all gradients together, over all ranks."""
        grads = {name: tensor.grad for name, tensor in self.tensors.items() if tensor.grad is not None}
        if not self._divided:
            return math.sqrt(sum_squares(list(grads.values())))
        counted = [self.counted(name, grad) for name, grad in grads.items()]
        return math.sqrt(self._ranks.sum_all([sum_squares([grad for grad in counted if grad is not None])])[0])

    def counted(self, name: str, tensor: paddle.Tensor) -> paddle.Tensor | None:
        """What this rank counts in a sum over all ranks, which has every element once; None = nothing.

        Args:
            name: Of a parameter.
            tensor: A tensor like that of ``tensors``, such as its gradient.
        """
        counted = self._counted[name]
        if isinstance(counted, bool):
            return tensor if counted else None
        return tensor * counted.astype(tensor.dtype)

    @paddle.no_grad()
    def copy_to_model(self, values: Mapping[str, paddle.Tensor] | None = None) -> None:
        """Rounds the master weights, or other values of these tensors, into the parameters."""
        for name, parameter in (self._half if values is None else self.parameters).items():
            parameter.set_value((values or self.tensors)[name].astype(parameter.dtype))

    @contextlib.contextmanager
    def applied(self, values: Mapping[str, paddle.Tensor]) -> Iterator[None]:
        """Context in which the model has other values of these tensors."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.copy_to_model(values)
        try:
            yield
        finally:
            with paddle.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.set_value(own[name])

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """Context in which the model's weights are set to others, for use without further training."""
        yield

    def model_slices(self) -> Mapping[str, paddle.Tensor]:
        """Name -> this rank's slice of a weight, in the type of the model; of those that are whole nothing."""
        return {}

    def clear_grads(self) -> None:
        """Clears the gradients."""
        for parameter in (*self.parameters.values(), *self.tensors.values()):
            parameter.clear_gradient(False)

    def unlike(self, names: Iterable[str]) -> set[str]:
        """What is in one and not in the other: the parameters of this rank, and names of those of all ranks."""
        here = self.parameters.keys()
        foreign = set() if self.placement.elsewhere else set(names) - here
        return foreign | (here - set(names))

    def local(self, name: str, whole: np.ndarray, what: str) -> np.ndarray:
        """This rank's part of a whole tensor that belongs to a parameter.

        Args:
            name: Of the parameter.
            whole: The values, in the shape of the whole parameter.
            what: What they are, for the error.

        Raises:
            ValueError: They have another shape.
        """
        shape = self.placement.whole_shape(name, self.parameters[name].shape)
        if whole.shape != shape:
            raise ValueError(f"{what} has shape {list(whole.shape)}, the parameter {list(shape)}")
        return self.placement.part(name, whole)


@paddle.no_grad()
def sum_squares(tensors: list[paddle.Tensor]) -> float:
    """The sum of the squares of all elements."""
    if not tensors:
        return 0.0
    fused = kernels.compiled("sum_squares", *tensors)
    if fused is not None:
        return float(fused(tensors))
    # A product of a row and a column is the fastest sum of squares here: a third of the time of (t * t).sum().
    squares = [paddle.matmul(t.reshape([1, -1]), t.reshape([-1, 1])).astype("float64") for t in tensors]
    return float(paddle.concat(squares).sum())

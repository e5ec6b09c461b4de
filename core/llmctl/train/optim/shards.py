"""Sharding of the optimizer over ranks (ZeRO, https://arxiv.org/abs/1910.02054): each updates a slice of every parameter.

With stage 1 the ranks share master weights and moments: gradients are summed into slices before the update, and what was
updated is gathered. With stage 2 they share gradients too: these are summed into slices after each backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle

from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import all_reduce, buckets, reduce_scatter
from llmctl.parallel.mesh import Mesh
from llmctl.parallel.placement import Placement
from llmctl.parallel.slicing import Slicing
from llmctl.train.optim.master_weights import HALF, Complete, MasterWeights
from llmctl.train.optim.slices import gathered, kept_of


class Shards(MasterWeights):
    """Slices of parameters, in FP32 or better.

    Args:
        parameters: Name -> parameter.
        mesh: The ranks; of all that have the same parameter, those of ``Sharing.slices`` share it.
        stage: 1 or 2.
        placement: Where parameters are that other axes share; None = no other axis shares any.
        complete: As for ``MasterWeights``.
        sum_stages: As for ``MasterWeights``.
        offload: Whether the optimizer's states are in main memory, all slices among them.

    Attributes:
        tensors: Name -> this rank's slice.
    """

    def __init__(
        self,
        parameters: Mapping[str, paddle.Tensor],
        mesh: Mesh,
        stage: int = 1,
        placement: Placement | None = None,
        complete: Complete | None = None,
        sum_stages: Complete | None = None,
        offload: bool = False,
    ) -> None:
        self.parameters, self._ranks, self.offload = parameters, mesh, offload
        self._stage, self._complete, self._sum_stages = stage, complete, sum_stages
        self.placement = placement or Placement(mesh.topology, mesh.place)
        self.slicing = {name: self.slicing_of(name, p) for name, p in parameters.items()}
        self.tensors = {name: self._slice_of(name, p) for name, p in parameters.items()}
        self._counted = {name: self._counts(name) for name in parameters}
        self._buckets = self.in_buckets(parameters, mesh.bucket)
        self._half = {name: p for name, p in parameters.items() if p.dtype in HALF}
        # What backward passes gave and is not summed yet, and which parameters any of them reached.
        self._held = {name: SimpleNamespace(grad=None) if name in self._half else p for name, p in parameters.items()}
        self._reached: set[str] = set()

    def axis_of(self, name: str) -> Axis:
        """The ranks that have the slices of a parameter."""
        return self._ranks.axis(self.placement.sharing(name).slices)

    def slicing_of(self, name: str, parameter: paddle.Tensor) -> Slicing:
        """How a parameter is divided among them."""
        return Slicing(tuple(parameter.shape), self.axis_of(name).size)

    def in_buckets(self, parameters: Mapping[str, paddle.Tensor], limit: float) -> list[list[str]]:
        """Names in buckets of one type and of the same ranks each, of about ``limit`` bytes."""
        found: list[list[str]] = []
        for names in self.placement.alike(parameters).values():
            rest = iter(names)
            found += [[next(rest) for _ in bucket] for bucket in buckets([parameters[n] for n in names], limit)]
        return found

    @paddle.no_grad()
    def _slice_of(self, name: str, parameter: paddle.Tensor) -> Any:
        kept = kept_of(parameter)
        own = self._own(name, parameter.detach()) if kept is None else kept.slice
        return self._apart(own.astype("float32") if own.dtype in HALF else own.clone())

    def _own(self, name: str, tensor: paddle.Tensor) -> paddle.Tensor:
        return self.slicing[name].rows(tensor)[self.axis_of(name).rank]

    def _counts(self, name: str) -> bool | paddle.Tensor:
        counted, shape = super()._counts(name), self.parameters[name].shape
        return counted if isinstance(counted, bool) else self._own(name, counted.astype("float32").expand(shape))

    @paddle.no_grad()
    def accumulate_grads(self) -> None:
        """Takes the gradients of a backward pass from the parameters; with stage 2 they are summed into slices at once."""
        self._take(self._half)
        if self._stage > 1 and any(held.grad is not None for held in self._held.values()):
            self._reduce(self._buckets)

    def _take(self, names: Iterable[str]) -> None:
        """Adds gradients of parameters in half types to what is held of them, in FP32."""
        for name in names:
            parameter = self.parameters[name]
            if name in self._half and parameter.grad is not None:
                held, grad = self._held[name], parameter.grad.astype("float32")
                held.grad = grad if held.grad is None else held.grad + grad
                parameter.clear_gradient(False)

    @paddle.no_grad()
    def sum_grads(self) -> None:
        """Sums the gradients over the rows of all ranks, into slices."""
        if self._stage == 1:
            self._reduce(self._buckets)
        for sharing, names in self.placement.alike(self.parameters).items():
            reached = paddle.to_tensor([float(name in self._reached) for name in names])
            all_reduce(reached, self._ranks.axis(sharing.slices), "max")
            for name, anywhere in zip(names, reached.tolist(), strict=True):
                if not anywhere:
                    self.tensors[name].clear_gradient(False)
        self._reached.clear()
        self._sum_copies()

    def _reduce(self, buckets: Iterable[Sequence[str]]) -> None:
        """Adds what is held of some parameters to the gradients of their slices."""
        held = {name: self._held[name] for names in buckets for name in names}
        self._reached |= {name for name, one in held.items() if one.grad is not None}
        if self._complete:
            self._complete(held)
        for names in buckets:
            rows = paddle.concat([self._rows_of_grad(name) for name in names], axis=1)
            summed = reduce_scatter(rows.reshape([-1]), self.axis_of(names[0]))
            for name, grad in zip(names, paddle.split(summed, [self.slicing[n].length for n in names]), strict=True):
                tensor = self.tensors[name]
                tensor.grad = grad if tensor.grad is None else tensor.grad + grad
                self._release(name)

    def _release(self, name: str) -> None:
        """Frees the gradient that is held of a parameter."""
        if name in self._half:
            self._held[name].grad = None
        else:
            self.parameters[name].clear_gradient(False)

    def _rows_of_grad(self, name: str) -> paddle.Tensor:
        grad, slicing = self._held[name].grad, self.slicing[name]
        if grad is None:
            return paddle.zeros([slicing.count, slicing.length], self.tensors[name].dtype)
        return slicing.rows(grad)

    @paddle.no_grad()
    def copy_to_model(self, values: Mapping[str, paddle.Tensor] | None = None) -> None:
        """Gathers the slices, or other values of them, into the parameters, rounded to their types."""
        source = self.tensors if values is None else values
        for names in self._buckets:
            kind = self.parameters[names[0]].dtype
            slices = [source[name].astype(kind) for name in names]
            wholes = gathered(slices, [self.slicing[n] for n in names], self.axis_of(names[0]))
            for name, whole in zip(names, wholes, strict=True):
                self.parameters[name].set_value(whole)

    @contextlib.contextmanager
    def applied(self, values: Mapping[str, paddle.Tensor]) -> Iterator[None]:
        """As ``MasterWeights.applied``."""
        self.copy_to_model(values)
        try:
            yield
        finally:
            self.copy_to_model()

    def clear_grads(self) -> None:
        """As ``MasterWeights.clear_grads``."""
        super().clear_grads()
        self._reached.clear()
        for name in self.parameters:
            self._release(name)

    def local(self, name: str, whole: np.ndarray, what: str) -> np.ndarray:
        """As ``MasterWeights.local``: this rank's slice of its part."""
        part = super().local(name, whole, what)
        return self._own(name, paddle.to_tensor(part)).numpy()

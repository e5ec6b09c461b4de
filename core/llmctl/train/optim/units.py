"""Sharding of the weights too (ZeRO stage 3): a block of the decoder is whole only while it computes.

A unit is a block with all its weights, trained or frozen. It is fetched before its forward pass and before its backward pass, and
dropped after each; its gradients are summed into slices one unit late, when all of them have arrived. What is outside of blocks
stays whole on every rank: embeddings, the last norm, the output head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import paddle
from paddle.autograd import PyLayer

from llmctl.parallel.mesh import Mesh
from llmctl.parallel.placement import Placement
from llmctl.train.optim.master_weights import Complete
from llmctl.train.optim.shards import Shards, gathered


class Units(Shards):
    """Slices of all weights of blocks, and what ``Shards`` has of the other trained ones.

    Args:
        parameters: Name -> trained parameter.
        mesh: As for ``Shards``.
        blocks: Path of a block -> its layer; adapters and hooks are on already.
        placement: As for ``Shards``.
        complete: As for ``MasterWeights``.
        sum_stages: As for ``MasterWeights``.
        offload: As for ``Shards``; slices of blocks are on the device too, in the types of the model.

    Attributes:
        units: The blocks.
    """

    def __init__(
        self,
        parameters: Mapping[str, paddle.Tensor],
        mesh: Mesh,
        blocks: Mapping[str, Any],
        placement: Placement | None = None,
        complete: Complete | None = None,
        sum_stages: Complete | None = None,
        offload: bool = False,
    ) -> None:
        super().__init__(parameters, mesh, 2, placement, complete, sum_stages, offload)
        self.units = [Unit(self, path, layer) for path, layer in blocks.items()]
        inside = {name for unit in self.units for name in unit.parameters}
        outside = {name: parameter for name, parameter in parameters.items() if name not in inside}
        self._buckets = self.in_buckets(outside, mesh.bucket)
        self.model_slicing = {name: one for unit in self.units for name, one in unit.slicing.items()}
        self._shown = self._own_slices()
        self._late: Unit | None = None
        self._summed: set[str] = set()

    def _own_slices(self) -> Mapping[str, paddle.Tensor]:
        """The slices of the optimizer's weights on the device."""
        if not self.offload:
            return self.tensors
        names = [name for unit in self.units for name in unit.trained]
        return {name: self.tensors[name].astype(self.parameters[name].dtype) for name in names}

    def slice_of(self, name: str, frozen: Mapping[str, paddle.Tensor]) -> paddle.Tensor:
        """This rank's slice of a weight, as the model shows it."""
        return frozen[name] if name in frozen else self._shown[name]

    def passed(self, unit: Unit) -> None:
        """The backward pass of a unit is over but for gradients on their way: those of the unit before have arrived."""
        self._sum_late()
        self._late = unit

    def _sum_late(self) -> None:
        unit, self._late = self._late, None
        if unit is not None:
            self._sum_unit(unit)

    @paddle.no_grad()
    def _sum_unit(self, unit: Unit) -> None:
        self._take(unit.trained)
        self._reduce(unit.buckets)
        self._summed.add(unit.path)
        unit.drop()

    @paddle.no_grad()
    def accumulate_grads(self) -> None:
        """Sums what is left of the gradients of a backward pass into slices."""
        waiting = any(held.grad is not None for held in self._held.values()) or any(
            parameter.grad is not None for parameter in self._half.values()
        )
        if not waiting and self._late is None and not self._summed:
            return
        self._sum_late()
        for unit in self.units:
            # The input of the first one may have no gradient, which would tell that its backward pass is over.
            if unit.trained and unit.path not in self._summed:
                self._sum_unit(unit)
        self._summed.clear()
        super().accumulate_grads()

    @paddle.no_grad()
    def copy_to_model(self, values: Mapping[str, paddle.Tensor] | None = None) -> None:
        """Gathers what is outside of units; these are fetched when they compute."""
        self._shown = self._own_slices() if values is None else values
        if self._buckets:
            super().copy_to_model(values)

    def model_slices(self) -> dict[str, paddle.Tensor]:
        """As ``MasterWeights.model_slices``."""
        named = [(unit, name, p) for unit in self.units for name, p in unit.parameters.items()]
        return {name: self.slice_of(name, unit.frozen).astype(p.dtype) for unit, name, p in named}

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """As ``MasterWeights.whole``; slices are set to what the weights are in the end."""
        for unit in self.units:
            unit.fetch()
        yield
        with paddle.no_grad():
            for unit in self.units:
                unit.take()
                unit.drop()
            self._shown = self._own_slices()


class Unit:
    """The weights of one block.

    Args:
        owner: Has the slices of trained weights.
        path: Path of the block.
        layer: The block; hooks are added to it, and its weights are dropped.

    Attributes:
        parameters: Name -> weight; without values while the unit is not whole.
        trained: Names of those that are trained.
        buckets: These, in buckets of one type and of the same ranks each.
        frozen: Name -> this rank's slice of the others.
        slicing: Name -> how a weight is sliced.
    """

    def __init__(self, owner: Units, path: str, layer: Any) -> None:
        self._owner, self.path = owner, path
        named = {f"{path}.{name}": parameter for name, parameter in layer.named_parameters()}
        self.parameters = {name: p for name, p in named.items() if p.is_floating_point()}
        self.trained = [name for name in self.parameters if name in owner.parameters]
        self.buckets = owner.in_buckets({name: self.parameters[name] for name in self.trained}, float("inf"))
        self.slicing = {name: owner.slicing_of(name, p) for name, p in self.parameters.items()}
        with paddle.no_grad():
            self.frozen = {n: self._own(n) for n in self.parameters if n not in owner.parameters}
        self._kinds = owner.in_buckets(self.parameters, float("inf"))
        self._whole = True
        self.drop()
        layer.register_forward_pre_hook(self._before)
        layer.register_forward_post_hook(self._after)

    def _own(self, name: str) -> paddle.Tensor:
        return self.slicing[name].rows(self.parameters[name].detach())[self._owner.axis_of(name).rank].clone()

    @paddle.no_grad()
    def fetch(self) -> None:
        """Makes the weights whole."""
        if self._whole:
            return
        for names in self._kinds:
            kind = self.parameters[names[0]].dtype
            slices = [self._owner.slice_of(name, self.frozen).astype(kind) for name in names]
            values = gathered(slices, [self.slicing[name] for name in names], self._owner.axis_of(names[0]))
            for name, whole in zip(names, values, strict=True):
                whole._share_buffer_to(self.parameters[name])
        self._whole = True

    def drop(self) -> None:
        """Frees the memory of the weights."""
        if self._whole:
            for parameter in self.parameters.values():
                parameter._clear_data()
        self._whole = False

    def take(self) -> None:
        """Sets the slices to those of the weights."""
        for name in self.parameters:
            own = self._own(name)
            if name in self.frozen:
                self.frozen[name] = own
            else:
                self._owner.tensors[name].set_value(own.astype(self._owner.tensors[name].dtype))

    def _before(self, layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.fetch()
        x, *rest = args
        return (_Passed.apply(x, self), *rest) if _differentiated(x) else args

    def _after(self, layer: Any, args: tuple[Any, ...], y: Any) -> Any:
        self.drop()
        return _Needed.apply(y, self) if _differentiated(y) else y

    def passed(self) -> None:
        """Its backward pass is over."""
        self._owner.passed(self)


def _differentiated(x: paddle.Tensor) -> bool:
    return paddle.is_grad_enabled() and not x.stop_gradient


class _Needed(PyLayer):
    """On the output of a unit: its gradient comes before those inside."""

    @staticmethod
    def forward(ctx: Any, y: paddle.Tensor, unit: Unit) -> paddle.Tensor:
        ctx.unit = unit
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        ctx.unit.fetch()
        return grad.clone()


class _Passed(PyLayer):
    """On the input of a unit: its gradient comes after those inside."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, unit: Unit) -> paddle.Tensor:
        ctx.unit = unit
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        ctx.unit.passed()
        return grad.clone()


def blocks_in(model: Any, paths: Iterable[str]) -> dict[str, Any]:
    """Path -> layer of the blocks that this rank has."""
    layers: dict[str, Any] = dict(model.named_sublayers())
    return {path: layers[path] for path in paths if path in layers and list(layers[path].parameters())}

"""Sharding of the weights too (ZeRO stage 3): a layer is whole only while it computes.

A unit is a block of the decoder, the embeddings or the output head, with all its weights, trained, frozen or quantized. It is fetched
before its forward pass and before its backward pass, and dropped after each; its gradients are summed into slices one unit late, when
all of them have arrived. Embeddings are fetched forward only: the gradient of a table is made of ids and gradients. A table that is both
embeddings and head is one unit that computes twice: it is fetched, dropped and summed for either. The rest stays whole on every rank,
such as the last norm.
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
from llmctl.train.optim.shards import Shards
from llmctl.train.optim.slices import fill, keep, kept_of


class Units(Shards):
    """Slices of all weights of units, and what ``Shards`` has of the other trained ones.

    Args:
        parameters: Name -> trained parameter.
        mesh: As for ``Shards``.
        layers: Path of a unit -> its layers, as ``layers_in`` has them; adapters and hooks are on already.
        placement: As for ``Shards``.
        complete: As for ``MasterWeights``.
        sum_stages: As for ``MasterWeights``.
        offload: As for ``Shards``; slices of blocks are on the device too, in the types of the model.

    Attributes:
        units: The units.
    """

    def __init__(
        self,
        parameters: Mapping[str, paddle.Tensor],
        mesh: Mesh,
        layers: Mapping[str, tuple[Any, Any]],
        placement: Placement | None = None,
        complete: Complete | None = None,
        sum_stages: Complete | None = None,
        offload: bool = False,
    ) -> None:
        super().__init__(parameters, mesh, 2, placement, complete, sum_stages, offload)
        self.units = [Unit(self, path, *of_unit) for path, of_unit in layers.items()]
        inside = {name for unit in self.units for name in unit.weights}
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

    def _slice_of(self, name: str, parameter: Any) -> Any:
        own, kept = super()._slice_of(name, parameter), kept_of(parameter)
        if kept is not None:
            kept.slice = own
        return own

    def slice_of(self, name: str, weight: Any) -> paddle.Tensor:
        """This rank's slice of a weight of a unit, as the model shows it."""
        shown: paddle.Tensor = self._shown.get(name, weight.kept.slice)
        return shown

    def needed(self, unit: Unit) -> None:
        """The backward pass of a unit begins, maybe again; then its gradients are summed again."""
        self._summed.discard(unit.path)

    def passed(self, unit: Unit) -> None:
        """The backward pass of a unit is over but for gradients on their way: those of the unit before have arrived."""
        if self._late is not unit:
            self._sum_late()
        self._late = unit

    def _sum_late(self) -> None:
        unit, self._late = self._late, None
        if unit is not None:
            self._sum_unit(unit)

    @paddle.no_grad()
    def _sum_unit(self, unit: Unit) -> None:
        unit.join_grads()
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
        named = [(name, weight) for unit in self.units for name, weight in unit.weights.items()]
        return {name: self.slice_of(name, weight).astype(weight.dtype) for name, weight in named}

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """As ``MasterWeights.restoring``; slices of units are set, by ``slices.keep``."""
        yield
        with paddle.no_grad():
            self._shown = self._own_slices()


class Unit:
    """The weights of one layer that is called once in a pass: a block, the embeddings or the output head.

    Args:
        owner: Has the slices of trained weights.
        path: Path of the layer.
        layer: The layer; hooks are added to it, and its weights are dropped.
        head: Where its ``weight`` is the output head too: the ``TiedHead``, which gets hooks as well.

    Attributes:
        weights: Name -> weight, quantized ones among them; without values while the unit is not whole.
        trained: Names of those that are trained.
        buckets: These, in buckets of one type and of the same ranks each.
        slicing: Name -> how a weight is sliced.
    """

    def __init__(self, owner: Units, path: str, layer: Any, head: Any = None) -> None:
        self._owner, self.path = owner, path
        by_type = sorted(layer.state_dict().items(), key=lambda item: str(item[1].dtype))
        self.weights = {f"{path}.{name}": weight for name, weight in by_type}
        self.trained = [name for name in self.weights if name in owner.parameters]
        self.buckets = owner.in_buckets({name: self.weights[name] for name in self.trained}, float("inf"))
        self.slicing = {name: owner.slicing_of(name, weight) for name, weight in self.weights.items()}
        self._kinds = owner.in_buckets(self.weights, float("inf"))
        self._whole = False
        # Layers of other types, such as a subclass or an adapter, may read their weights.
        self._unread = layer if type(layer) is paddle.nn.Embedding else None
        for name, weight in self.weights.items():
            if weight._is_initialized():
                keep(weight, owner.axis_of(name))
            if name in owner.tensors:
                weight.kept.slice = owner.tensors[name]
        layer.register_forward_pre_hook(self._before)
        layer.register_forward_post_hook(self._after)
        self._twins: list[tuple[Any, Any]] = []
        if head is not None:
            # A tensor's gradient arrives when those of all its uses have: the head has a tensor of its own for the same values.
            twin = layer.weight.detach()
            twin.stop_gradient = layer.weight.stop_gradient
            self._twins.append((layer.weight, twin))
            head.register_forward_pre_hook(lambda head, args: (*self._before(head, args)[:1], twin))
            head.register_forward_post_hook(self._after)

    def fetch(self) -> None:
        """Makes the weights whole."""
        if self._whole:
            return
        for names in self._kinds:
            weights = {name: self.weights[name] for name in names}
            slices = [self._owner.slice_of(name, weight) for name, weight in weights.items()]
            fill(list(weights.values()), slices, self._owner.axis_of(names[0]))
        for weight, twin in self._twins:
            weight._share_buffer_to(twin)
        self._whole = True

    def drop(self) -> None:
        """Frees the memory of the weights."""
        if self._whole:
            for weight in (*self.weights.values(), *(twin for _, twin in self._twins)):
                weight._clear_data()
        self._whole = False

    def join_grads(self) -> None:
        """Adds the gradients of tensors for the head to those of its weights."""
        for weight, twin in self._twins:
            if twin.grad is not None:
                weight.grad = twin.grad if weight.grad is None else weight.grad + twin.grad
                twin.clear_gradient(False)

    def _before(self, layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.fetch()
        x, *rest = args
        return (_Passed.apply(x, self), *rest) if _differentiated(x) else args

    def _after(self, layer: Any, args: tuple[Any, ...], y: Any) -> Any:
        self.drop()
        return _Needed.apply(y, self, layer is not self._unread) if _differentiated(y) else y

    def needed(self, read: bool) -> None:
        """Its backward pass begins, and reads the weights or not."""
        self._owner.needed(self)
        if read:
            self.fetch()

    def passed(self) -> None:
        """Its backward pass is over."""
        self._owner.passed(self)


def _differentiated(x: paddle.Tensor) -> bool:
    return paddle.is_grad_enabled() and not x.stop_gradient


class _Needed(PyLayer):
    """On the output of a unit: its gradient comes before those inside."""

    @staticmethod
    def forward(ctx: Any, y: paddle.Tensor, unit: Unit, read: bool) -> paddle.Tensor:
        ctx.unit, ctx.read = unit, read
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        ctx.unit.needed(ctx.read)
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


def layers_in(model: Any, paths: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Path -> layer of the units that this rank has, and the head that computes with the same weight, or None."""
    layers: dict[str, Any] = dict(model.named_sublayers())
    held = {path: layers[path] for path in paths if path in layers and list(layers[path].parameters())}
    return {path: (layer, model.tied_head if _is_tied(layer, model) else None) for path, layer in held.items()}


def _is_tied(layer: Any, model: Any) -> bool:
    """Whether the weight of a layer is embeddings and output head."""
    weight = getattr(layer, "weight", None)
    return model.tied_head is not None and weight is not None and weight is model.decoder.embedding_weight

"""A model that holds one rank's parts of its tensors: how it is cut, and its initial weights, which do not depend on the cut."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmctl import runtime
from llmctl.card.dims import Dims
from llmctl.card.sharding import Parallel, Split
from llmctl.checkpoint.formats.dtypes import STORAGE
from llmctl.checkpoint.shards import part_shape, split, stretches, whole_shape
from llmctl.checkpoint.slices import MappedTensor, fill, fill_part
from llmctl.plugins import Plugin

Done = Callable[[str, Any], object]
"""Called with the name of a parameter and the parameter, as soon as it has its values."""


def nothing(name: str, parameter: Any) -> None:
    """The parameter stays as it is."""


@dataclass
class Cut:
    """How the parameters of a model are cut among tensor-parallel ranks.

    Attributes:
        parallel: The degree, and the rank whose parts the model holds.
        splits: How parameters are cut, by name; others are whole on every rank.
        first_only: Parameters that only the first rank has: biases of linears whose inputs are cut, since the ranks'
            outputs are summed.
    """

    parallel: Parallel = Parallel()
    splits: dict[str, Split] = field(default_factory=dict)
    first_only: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, plugin: Plugin, dims: Dims, parallel: Parallel) -> Cut:
        """How the rules of a family cut a model.

        Raises:
            ValueError: A size does not divide.
        """
        if parallel.degree == 1:
            return cls(parallel)
        rules = plugin.hooks.tensor_parallel_rules(card=plugin.card, dims=dims, degree=parallel.degree)
        inputs = {name.rpartition(".")[0] for name, rule in rules.items() if rule.axis == 0}
        biases = {
            tensor.name
            for tensor in plugin.card.expand(dims)
            if tensor.name not in rules and tensor.kind == "bias" and tensor.name.rpartition(".")[0] in inputs
        }
        return cls(parallel, dict(rules), biases)

    def part(self, name: str, values: Any) -> Any:
        """This rank's part of the values of a parameter."""
        rule = self.splits.get(name)
        return values if rule is None else split(values, rule, self.parallel.rank, self.parallel.degree)

    def whole_shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the whole parameter, from the shape of this rank's part."""
        rule = self.splits.get(name)
        return tuple(shape) if rule is None else whole_shape(shape, rule)

    def read(self, name: str, shape: tuple[int, ...], sources: Sequence[MappedTensor], dtype: str) -> Any:
        """This rank's part of a parameter from stored tensors; where these allow it, nothing else is read.

        Args:
            name: Name of the parameter.
            shape: Shape of the part.
            sources: What the whole parameter is filled from.
            dtype: Data type of the parameter.

        Raises:
            CheckpointError: A file is truncated, or a value does not fit into ``dtype``.
        """
        whole, rule, storage = self.whole_shape(name, shape), self.splits.get(name), STORAGE[dtype]
        if rule is not None:
            part = np.empty(shape, storage)
            places = stretches(rule, self.parallel.rank, self.parallel.degree)
            if fill_part(part, sources, dtype, rule.axis, places, whole):
                return part
        values = np.empty(whole, storage)
        fill(values, sources, dtype)
        return self.part(name, values)

    def apply(self, model: Any, seed: int | None = None, prefix: str = "", done: Done = nothing) -> None:
        """Replaces the parameters of a model, which take no memory yet, by this rank's parts.

        Args:
            model: The model, or one of its layers, built under ``paddle.LazyGuard``.
            seed: Seed of the initial weights; one tensor at a time is drawn whole and cut. None = the weights stay unset.
            prefix: What the names of a layer's parameters begin with in the model.
            done: Called with each parameter that has got its initial weights.
        """
        layers, state = dict(model.named_sublayers(include_self=True)), model.state_dict()
        for inner in list(state):
            # Nothing else refers to a tensor that was drawn whole once its part has replaced it.
            whole, (path, _, key) = state.pop(inner), inner.rpartition(".")
            name = prefix + inner
            if seed is not None:
                draw(name, whole, seed)
            if name in self.first_only and self.parallel.rank:
                setattr(layers[path], key, None)
            elif name in self.splits:
                whole = self._smaller(layers[path], name, whole)
                setattr(layers[path], key, whole)
            if seed is not None:
                done(name, whole)

    def _smaller(self, layer: Any, name: str, whole: Any) -> Any:
        import paddle

        shape = part_shape(whole.shape, self.splits[name], self.parallel.rank, self.parallel.degree)
        with paddle.LazyGuard():
            part = layer.create_parameter(list(shape), dtype=whole.dtype)
        if whole._is_initialized():
            part.set_value(self.part(name, whole.numpy()))
        return part


WHOLE = Cut()
"""A model that holds all of its tensors."""


def draw(name: str, parameter: Any, seed: int) -> None:
    """Gives a parameter without values its initial ones, which depend on its name and the seed alone."""
    if not parameter._is_initialized():
        seed_by_name(seed, name)
        parameter.initialize()


def seed_by_name(seed: int, name: str) -> None:
    """Seeds the generators for the initial values of one parameter."""
    runtime.seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little") >> 1)

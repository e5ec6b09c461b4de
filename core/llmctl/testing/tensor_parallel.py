"""Tensor parallelism in one process: what every family must satisfy; ``FamilyConformance`` inherits it.

Ranks are threads, each with a model of its own that holds the rank's shards; instead of collectives, threads exchange
tensors at a barrier.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.sharding import Split
from llmctl.card.tiny import tiny_dims
from llmctl.testing.evidence import EXACT, proves
from llmctl.testing.tiny import random_model

DEGREES = (2, 4)
"""The second exceeds the number of key-value heads in grouped-query attention; each rank has two query heads."""


class TensorParallelConformance:
    """Tests that use the fixtures of ``FamilyConformance``."""

    changes: ClassVar[Mapping[str, Any]] = {}

    def input_ids(self, dims: Dims, rows: int, length: int) -> Any:
        """As in ``FamilyConformance``."""
        raise NotImplementedError

    @proves("tensor-parallel")
    def test_split_tensors_merge_to_the_whole(self, plugin: plugins.Plugin, card: Family, dims: Dims) -> None:
        from llmctl.checkpoint.shards import merge, split

        rng = np.random.default_rng(3)
        for degree in (1, *DEGREES):
            rules = plugin.hooks.tensor_parallel_rules(card=card, dims=dims, degree=degree)
            assert degree == 1 or rules
            for tensor in card.expand(dims):
                if tensor.name not in rules:
                    continue
                rule, whole = rules[tensor.name], rng.normal(size=tensor.shape)
                parts = [split(whole, rule, rank, degree) for rank in range(degree)]
                assert np.array_equal(merge(parts, rule), whole), (tensor.name, degree)
                shared = max(segment.replicas for segment in rule.segments) > 1
                assert shared or sum(part.size for part in parts) == whole.size

    @proves("tensor-parallel")
    def test_a_degree_that_does_not_divide_is_refused(self, plugin: plugins.Plugin, card: Family, dims: Dims) -> None:
        with pytest.raises(ValueError, match=r"\w+=\d+ is not divisible by tensor_parallel_degree=7; use one of"):
            plugin.hooks.tensor_parallel_rules(card=card, dims=dims, degree=7)

    @proves("tensor-parallel")
    @pytest.mark.parametrize("degree", DEGREES)
    def test_ranks_with_parts_of_the_tensors_give_the_logits_of_the_whole(
        self, plugin: plugins.Plugin, card: Family, dims: Dims, degree: int
    ) -> None:
        settable = {setting.name for setting in card.settings if setting.key}
        heads = {"heads": 8, "kv_heads": 8 if dims.kv_heads == dims.heads else 2}
        dims = tiny_dims(card, {**self.changes, **{name: n for name, n in heads.items() if name in settable}})
        ids = self.input_ids(dims, 2, 12)
        whole = _logits(random_model(plugin, dims), ids)
        rules = plugin.hooks.tensor_parallel_rules(card=plugin.card, dims=dims, degree=degree)
        group = ThreadGroup(degree)
        ranks = [_rank_model(plugin, dims, rules, group, rank) for rank in range(degree)]
        with ThreadPoolExecutor(degree) as threads:
            parts = list(threads.map(lambda rank: group.run(lambda: _logits(rank, ids)), ranks))
        np.testing.assert_allclose(np.concatenate(parts, axis=-1), whole, atol=EXACT)


class ThreadGroup:
    """Collectives among the threads of all ranks."""

    def __init__(self, degree: int) -> None:
        self.degree = degree
        self._held: list[Any] = [None] * degree
        self._barrier = threading.Barrier(degree, timeout=60)

    def run(self, work: Any) -> Any:
        """The result of one rank's work; if it fails, the others stop waiting."""
        try:
            return work()
        except Exception:
            self._barrier.abort()
            raise

    def all_reduce(self, rank: int, value: Any) -> Any:
        """The sum of the values of all ranks."""
        self._held[rank] = value
        self._barrier.wait()
        total = sum(self._held[1:], self._held[0])
        self._barrier.wait()
        return total


def _rank_model(plugin: plugins.Plugin, dims: Dims, rules: Mapping[str, Split], group: ThreadGroup, rank: int) -> Any:
    """The random model with a rank's shards; row-parallel layers all-reduce their outputs."""
    model, degree = random_model(plugin, dims), group.degree
    layers = dict(model.named_sublayers())
    for tensor in plugin.card.expand(dims):
        rule = rules.get(tensor.name)
        if rule is None:
            continue
        path, _, key = tensor.name.rpartition(".")
        _replace(layers[path], key, rule, rank, degree)
        if rule.axis == 0 and len(tensor.shape) == 2:
            if tensor.kind == "embed":
                _vocab_parallel(layers[path], rank * tensor.shape[0] // degree)
            elif rank:
                layers[path].bias = None
            layers[path].register_forward_post_hook(lambda _, __, output: group.all_reduce(rank, output))
        if tensor.slot == "out":
            layers[path.rpartition(".")[0]].register_forward_pre_hook(lambda _, args: _own_slopes(args, rank, degree))
    return model


def _replace(layer: Any, key: str, rule: Split, rank: int, degree: int) -> None:
    from llmctl.checkpoint.shards import split

    part = split(getattr(layer, key).numpy(), rule, rank, degree)
    parameter = layer.create_parameter(part.shape, dtype="float64")
    parameter.set_value(part)
    setattr(layer, key, parameter)


def _vocab_parallel(embedding: Any, first: int) -> None:
    """Makes an embedding with a shard of the vocabulary return zeros for other tokens."""
    import paddle

    def forward(ids: Any) -> Any:
        place = ids - first
        rows = embedding.weight.shape[0]
        held = paddle.logical_and(place >= 0, place < rows).astype("float64").unsqueeze(-1)
        return paddle.nn.functional.embedding(place.clip(0, rows - 1), embedding.weight) * held

    embedding.forward = forward


def _own_slopes(args: tuple[Any, ...], rank: int, degree: int) -> tuple[Any, ...]:
    """The arguments of an attention layer with the ALiBi slopes of the rank's heads."""
    from llmctl.nn.mask import Mask

    x, cos_sin, mask, *rest = args
    if mask is not None and mask.slopes:
        own = mask.slopes[rank * len(mask.slopes) // degree : (rank + 1) * len(mask.slopes) // degree]
        mask = Mask(mask.first_BS, mask.last_BS, mask.new, own, mask.key_position_BS, mask.packed)
    return x, cos_sin, mask, *rest


def _logits(model: Any, ids: Any) -> Any:
    import paddle

    with paddle.no_grad():
        return model(paddle.to_tensor(ids)).numpy()

"""Cutting tensors for ranks: what every family must satisfy; ``FamilyConformance`` inherits it."""

from __future__ import annotations

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.testing.evidence import proves

DEGREES = (2, 4)
"""The second exceeds the number of key-value heads in grouped-query attention."""


class TensorParallelConformance:
    """Tests that use the fixtures of ``FamilyConformance``."""

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

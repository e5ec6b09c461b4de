"""Continuous batching: what every family must satisfy; ``FamilyConformance`` inherits it.

Concurrent requests, in a cache that is too small for all of them, get the tokens that the family's model generates for each
of them alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmctl.card import capabilities, support
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.testing.evidence import proves
from llmctl.testing.fused import VIRTUAL, Fused, executor

LENGTHS = (5, 9, 21, 17, 25)


@pytest.mark.filterwarnings("ignore:.*experimental:UserWarning")
class BatchingConformance:
    """Tests that use the fixtures of ``FusedConformance``."""

    def input_ids(self, dims: Dims, rows: int, length: int) -> Any:
        """As in ``FamilyConformance``."""
        raise NotImplementedError

    def requests(self, dims: Dims) -> list[Any]:
        """Requests of several lengths, every other one sampled."""
        from llmctl.infer.request import Request
        from llmctl.infer.sampling import SamplingParams

        greedy = SamplingParams(max_new_tokens=34)
        sampled = replace(greedy, sample=True, temperature=1.5, top_k=20, top_p=0.9, repetition_penalty=1.2)
        prompts = [self.input_ids(dims, 1, length)[0].tolist() for length in LENGTHS]
        return [
            Request(prompt=prompt, options=sampled if index % 2 else greedy, index=index, draft=2 * (index == 2))
            for index, prompt in enumerate(prompts)
        ]

    @proves("fused")
    def test_requests_beside_each_other_get_what_each_gets_alone(self, dims: Dims, fused: Fused) -> None:
        requests = self.requests(dims)
        engine = _engine(fused, blocks=7)
        # The second run finds cached prefixes of the first.
        for _ in range(2):
            assert engine.generate(requests) == _alone(fused.layer, requests)
        assert engine.statistics().preemptions and not engine.statistics().used_blocks

    @proves("fused-prefix")
    def test_requests_share_the_blocks_of_virtual_tokens(self, card: Family, dims: Dims, fused: Fused) -> None:
        from llmctl.adapters.attach import add_prefix
        from llmctl.adapters.prefix import Prefix, shape_of
        from llmctl.infer.packed.adapters import pack_prefix

        if isinstance(support.state(card, "prefix-tuning"), capabilities.Unsupported):
            pytest.skip("the family does not support prefix tuning")
        values = np.random.default_rng(4).normal(size=shape_of(dims, VIRTUAL)).astype("float32")
        requests = self.requests(dims)
        add_prefix(fused.layer, shape_of(dims, VIRTUAL)).set_values(values)
        try:
            expected = _alone(fused.layer, requests)
        finally:
            fused.layer.prefix = None
        engine = _engine(fused, blocks=9, prefix=pack_prefix(Prefix(values), fused.packed.graph))
        assert engine.generate(requests) == expected and engine.statistics().used_blocks == 1


def _engine(fused: Fused, **options: Any) -> Any:
    from llmctl.infer.engine.engine import Engine
    from llmctl.infer.executors.native import available

    name = "native" if available() else "twin"
    return Engine(executor(name, fused.packed), fused.packed.graph, step_tokens=40, most_rows=4, **options)


def _alone(layer: Any, requests: list[Any]) -> list[Any]:
    from llmctl.infer.eager.generate import generate

    return [generate(layer, [r.prompt], r.options, [], 0, indices=[r.index])[0] for r in requests]

"""What ranks send in the passes of a step is exactly what the formulas say."""

import pytest
from kit.families import CASES

from llmctl import plugins
from llmctl.card.sharding import Parallel
from llmctl.checkpoint.partial import Cut
from llmctl.nn.recompute import recompute_layers
from llmctl.parallel import regions
from llmctl.parallel.collectives import TRAFFIC
from llmctl.parallel.costs.step import Plan, Work, in_passes
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tiny import random_model
from llmctl.train.methods.loss import next_token_loss

CHOSEN = [next(case for case in CASES if case.family == family) for family in ("llama", "qwen2_moe", "opt")]


def count(mesh, sequence, recomputed):
    found = []
    for case in CHOSEN:
        plugin = plugins.load(case.family)
        model = random_model(plugin, case.dims).to(dtype="float32")
        cut = Cut.of(plugin, case.dims, Parallel(mesh.tensor.size, mesh.tensor.rank))
        cut.apply(model)
        if recomputed:
            recompute_layers(model, regions.blocks_of(plugin.card.expand(case.dims)))
        regions.connect(model, plugin.card, case.dims, cut, mesh.tensor, sequence)
        model.aux_loss = 0.0
        model.train()
        TRAFFIC.clear()
        for _ in range(2):
            next_token_loss(model, case.arrays).total.backward()
        found.append((dict(TRAFFIC.calls), dict(TRAFFIC.bytes)))
    return found


@pytest.mark.parametrize(("sequence", "recomputed"), [(False, False), (True, False), (True, True)])
def test_tensor_ranks_send_what_the_formulas_say(sequence, recomputed):
    topology = Topology(tensor=2)
    for rank in run_ranks(2, count, sequence, recomputed, topology=topology):
        for case, (calls, sizes) in zip(CHOSEN, rank, strict=True):
            labels = int((case.arrays["labels"] != -100).sum())
            tokens, hidden = case.arrays["input_ids"].size, case.dims.hidden
            work = Work(2, tokens, labels, hidden, case.dims.layers, 0, 0, 4, 0, 0, 0.0, recomputed)
            expected_calls, expected_sizes = {}, {}
            for one in in_passes(work, Plan(topology, sequence), True, True):
                key = one.axis, one.op
                expected_calls[key] = expected_calls.get(key, 0) + one.calls
                expected_sizes[key] = expected_sizes.get(key, 0) + one.calls * one.size
            if "embed" in case.dims and case.dims.embed != hidden:
                # Embedding and head of this family are narrower than its layers.
                narrower = 2 * 4 * (tokens + labels) * (hidden - case.dims.embed)
                expected_sizes["tensor", "all_reduce"] -= narrower
            assert calls == expected_calls and sizes == expected_sizes, case.family

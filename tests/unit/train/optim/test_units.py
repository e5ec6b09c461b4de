"""Weights that are whole only while their block computes: equal to one process, and what is held meanwhile."""

import math
from itertools import pairwise

import numpy as np
import paddle
import pytest

from llmctl import plugins, runtime
from llmctl.card.tiny import tiny_dims
from llmctl.parallel.ranks import ALONE
from llmctl.parallel.regions import units_of
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tiny import random_model
from llmctl.train.activation_checkpointing import apply as recompute
from llmctl.train.optim import units
from llmctl.train.optim.adamw import AdamW, trained
from llmctl.train.optim.master_weights import MasterWeights
from llmctl.train.optim.units import Units

LAYERS = 4
TABLE = "llama.embed_tokens.weight"


def _model(kind):
    plugin = plugins.load("llama")
    dims = tiny_dims(plugin.card, {"layers": LAYERS, "tied": kind.startswith("tied")})
    model = random_model(plugin, dims)
    if kind.endswith("frozen"):
        # As with adapters: a part of each block is trained, and the input of the first has no gradient.
        for name, parameter in model.named_parameters():
            parameter.stop_gradient = "down_proj" not in name
    recompute(model, plugin.card, dims, "full" if kind == "recompute" else "none", 2)
    return model, units_of(plugin.card.expand(dims))


def _resident(model):
    return sum(math.prod(p.shape) for p in model.parameters() if p._is_initialized())


def _train(ranks, kind):
    """Three steps of two passes each; the losses, norms, weights, state, and the most elements of weights held at a time."""
    runtime.configure()
    model, paths = _model(kind)
    everything = _resident(model)
    parameters, most = trained(dict(model.named_parameters())), []
    if ranks.size > 1:
        held = Units(parameters, ranks, units.layers_in(model, paths), offload=kind == "offload")
        fetch = units.Unit.fetch
        units.Unit.fetch = lambda unit: (fetch(unit), most.append(_resident(model)))
        whole = [[math.prod(p.shape) for p in unit.weights.values()] for unit in held.units]
        sizes = everything, whole, _resident(model), sum(t.size for t in held.model_slices().values())
    else:
        held, sizes = MasterWeights(parameters), None
    adamw = AdamW(parameters, max_norm=0.5, weight_decay=0.1, weights=held)
    rng, losses, norms = np.random.default_rng(6), [], []
    model.train()
    for _ in range(3):
        loss = 0.0
        for number in range(4):
            ids = paddle.to_tensor(rng.integers(1, 30, [2, 7]))
            if number % ranks.size != ranks.number:
                continue
            hidden = model.hidden_states(ids)
            one = model.vocabulary.loss(hidden.reshape([-1, hidden.shape[-1]]), ids.reshape([-1]))
            one.backward()
            if ranks.size > 1 and kind == "tied":
                assert float(held.tensors[TABLE].grad.abs().sum()) > 0, "what came from the head is summed already"
            adamw.accumulate_grads()
            loss += one.item()
        adamw.sum_grads()
        norms.append(adamw.clip_grads(56.0))
        adamw.step(0.01)
        losses.append(ranks.total([loss])[0])
    model.eval()
    with paddle.no_grad():
        logits = model.logits(model.hidden_states(ids)).sum().item()
    if ranks.size > 1:
        assert _resident(model) == sizes[2], "all units are dropped again"
        highest = max(most)
        for unit in held.units:
            unit.fetch()
        weights = {name: p.numpy() for name, p in model.named_parameters()}
        return losses, norms, weights, logits, (*sizes, highest), sum(t.size for t in held.tensors.values())
    return losses, norms, {name: p.numpy() for name, p in model.named_parameters()}, logits, None, None


KINDS = [("plain", 4), ("recompute", 2), ("frozen", 2), ("offload", 2), ("tied", 4)]


@pytest.mark.parametrize(("kind", "size"), [*KINDS, pytest.param("tied frozen", 2, marks=pytest.mark.parallel)])
def test_a_model_in_units_trains_as_a_whole_one_and_two_neighbours_at_most_are_whole(kind, size):
    losses, norms, right, _, _, _ = _train(ALONE, kind)
    found = run_ranks(size, _train, kind, topology=Topology(sharding=size))
    for own_losses, own_norms, weights, _, (everything, whole, outside, slices, most), moved in found:
        np.testing.assert_allclose(own_losses, losses, rtol=1e-5)
        np.testing.assert_allclose(own_norms, norms, rtol=1e-4)
        assert weights.keys() == right.keys()
        for name, value in right.items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-4, atol=2e-5, err_msg=name)
        sizes = [sum(unit) for unit in whole]
        if kind.startswith("tied"):
            assert len(sizes) == LAYERS + 1 and everything == outside + sum(sizes)
            order = [*sizes[1:], sizes[0]]
        else:
            assert len(sizes) == LAYERS + 2 and everything == outside + sum(sizes)
            order = sizes[1:]
        assert slices == sum(-(-weight // size) for unit in whole for weight in unit)
        assert most == outside + max(sum(pair) for pair in pairwise(order))
        assert moved <= -(-everything // size) + LAYERS * 12 * size

"""Experts on several ranks compute what one process does, however unevenly tokens are routed."""

import functools
from functools import partial

import numpy as np
import paddle
import pytest

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.nn.moe import SparseMLP
from llmctl.parallel import experts
from llmctl.parallel.placement import Placement
from llmctl.parallel.ranks import ALONE
from llmctl.parallel.regions import units_of
from llmctl.parallel.slicing import Slicing
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tiny import random_model
from llmctl.train.methods.loss import next_token_loss
from llmctl.train.optim.adamw import AdamW, trained
from llmctl.train.optim.master_weights import MasterWeights
from llmctl.train.optim.shards import Shards
from llmctl.train.optim.units import Units, layers_in

CASES = [
    ("mixtral", {"balance": True, "experts": 4}, False),
    ("mixtral", {"balance": True, "experts": 8}, True),
    ("qwen2_moe", {"balance": True, "dense_layers": [0], "top_k": 2, "expert_ffn": 24, "shared_ffn": 40}, False),
]
PASSES = 4


def made(family, changes, skewed):
    """A model; in a skewed one all tokens go to the last two experts."""
    plugin = plugins.load(family)
    settable = {setting.name for setting in plugin.card.settings if setting.key}
    dims = tiny_dims(plugin.card, {name: value for name, value in changes.items() if name in settable})
    model = random_model(plugin, dims)
    model.train()
    for gate in [layer.gate for layer in model.sublayers() if isinstance(layer, SparseMLP)] if skewed else []:
        gate.forward = lambda x, route=gate.forward: to_the_last(*route(x))
    return model, dims


def to_the_last(weight_TK, expert_TK):
    return weight_TK, paddle.zeros_like(expert_TK) + paddle.arange(8 - expert_TK.shape[1], 8, dtype=expert_TK.dtype)


def batch(dims, number):
    ids = np.random.default_rng(number).integers(3, dims.vocab, (2, 9 + number))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def run(model, dims, numbers):
    total = 0.0
    for number in numbers:
        loss = next_token_loss(model, batch(dims, number)).total
        loss.backward()
        total += float(loss)
    return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def alone(case):
    total, grads = run(*made(*case), range(PASSES))
    return total, {name: grad.numpy() for name, grad in grads.items()}


def updated(ranks, case, stage):
    """Losses and norms of three steps, weights, and the optimizer's state, after updates that are clipped."""
    model, dims = made(*case)
    held_by = partial(MasterWeights, ranks=ranks)
    if ranks.size > 1:
        experts.divide(model, ranks.axis("expert"))
        each = dims.experts // ranks.topology.expert
        places = {name: number_of(name) // each for name, _ in made(*case)[0].named_parameters() if ".experts." in name}
        placement = Placement(ranks.topology, ranks.place, experts=places)
        layers = layers_in(model, units_of(plugins.load(case[0]).card.expand(dims)))
        held_by = partial(Shards, mesh=ranks, stage=stage, placement=placement)
        if stage == 3:
            held_by = partial(Units, mesh=ranks, layers=layers, placement=placement)
    parameters = trained(dict(model.named_parameters()))
    weights = held_by(parameters)
    # A large epsilon: else gradients near zero move weights by their rounding.
    adamw = AdamW(parameters, eps=1e-2, max_norm=0.02, weight_decay=0.1, weights=weights)
    losses, norms = [], []
    for step in range(3):
        own, items = 0.0, 0
        for number in range(step * PASSES, (step + 1) * PASSES):
            items += batch(dims, number)["labels"].size
            if number % ranks.size == ranks.number:
                loss = next_token_loss(model, batch(dims, number)).total
                loss.backward()
                adamw.accumulate_grads()
                own += float(loss)
        adamw.sum_grads()
        losses.append(ranks.total([own])[0])
        norms.append(adamw.clip_grads(float(items)))
        adamw.step(0.05)
    state = adamw.state()
    for unit in getattr(weights, "units", ()):
        unit.fetch()
    values = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    return losses, norms, values, state, {name: (one.shape, one.count) for name, one in weights.slicing.items()}


def number_of(name):
    """The number of the expert that a parameter belongs to."""
    return int(name.split(".experts.")[1].split(".")[0])


def compare_updates(mesh, chosen):
    return [updated(mesh, CASES[case], stage) for case, stage in chosen]


@pytest.fixture(scope="module")
def of_one():
    """Case -> what one process computes."""
    return functools.cache(lambda case: updated(ALONE, CASES[case], 0))


@pytest.mark.parametrize(
    ("topology", "chosen"),
    [
        (Topology(sharding=2, expert=2), [(0, 1), (1, 2), (2, 3)]),
        pytest.param(Topology(sharding=4, expert=2), [(0, 3), (1, 1), (1, 3), (2, 2)], marks=pytest.mark.parallel),
        pytest.param(Topology(data=2, sharding=2, expert=4), [(1, 2), (1, 3), (2, 1)], marks=pytest.mark.parallel),
    ],
    ids=str,
)
def test_slices_of_experts_and_of_all_else_are_updated_as_in_one_process(topology, chosen, of_one):
    results = run_ranks(topology.size, compare_updates, chosen, topology=topology)
    for number, (case, stage) in enumerate(chosen):
        losses, norms, values, state, _ = of_one(case)
        assert min(norms) > 0.02, "clipping must bite"
        seen = set()
        for rank, result in enumerate(results):
            own_losses, own_norms, own, moments, slicing = result[number]
            np.testing.assert_allclose(own_losses, losses, rtol=1e-12)
            np.testing.assert_allclose(own_norms, norms, rtol=1e-11)
            for name, value in own.items():
                np.testing.assert_allclose(value, values[name], rtol=1e-9, atol=1e-12, err_msg=f"{name} {stage}")
            for name, value in moments.items():
                slot, _, parameter = name.partition("/")
                right = state[name]
                if slot.startswith("moment"):
                    axis = "expert_sharding" if ".experts." in name else "sharding"
                    peers = topology.peers(axis, rank)
                    assert slicing[parameter] == (right.shape, len(peers))
                    right = Slicing(right.shape, len(peers)).rows(paddle.to_tensor(right))[peers.index(rank)].numpy()
                np.testing.assert_allclose(value, right, rtol=1e-9, atol=1e-13, err_msg=f"{name} {stage}")
            seen |= moments.keys()
        # Experts that no token reached have no moments anywhere, and are as they were.
        assert seen == state.keys()
        first = {name: parameter.numpy() for name, parameter in made(*CASES[case])[0].named_parameters()}
        unmoved = {name for name in first if f"moment1/{name}" not in state}
        assert {number_of(name) for name in unmoved} == (set(range(6)) if CASES[case][2] else set())
        assert all((values[name] == first[name]).all() for name in unmoved)


def compare(mesh):
    rank, found = mesh.data.rank, []
    for case in CASES:
        expected = alone(case)
        model, dims = made(*case)
        experts.divide(model, mesh.axis("expert"))
        total, grads = run(model, dims, range(rank, PASSES, mesh.data.size))
        found.append((expected, total, {name: grad.numpy() for name, grad in grads.items()}))
    return found


@pytest.mark.parametrize(("ranks", "degree"), [(2, 2), pytest.param(4, 4, marks=pytest.mark.parallel), (4, 2)])
def test_loss_and_gradients_are_those_of_one_process(ranks, degree):
    results = run_ranks(ranks, compare, topology=Topology(data=ranks, expert=degree))
    for number, case in enumerate(CASES):
        (loss, grads), _, _ = results[0][number]
        totals = [result[number][1] for result in results]
        found = {}
        for result in results:
            for name, grad in result[number][2].items():
                found[name] = found.get(name, 0) + grad
        assert sum(totals) == pytest.approx(loss, rel=1e-12)
        # An expert that no token reached has no gradient anywhere.
        assert found.keys() == grads.keys(), case
        reached = {int(name.split(".experts.")[1].split(".")[0]) for name in grads if ".experts." in name}
        assert reached == ({6, 7} if case[2] else set(range(4))), case
        for name, grad in grads.items():
            np.testing.assert_allclose(found[name], grad, rtol=1e-9, atol=1e-9 * np.abs(grad).max(), err_msg=name)

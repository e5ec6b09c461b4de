"""Experts on several ranks compute what one process does, however unevenly tokens are routed."""

import numpy as np
import paddle
import pytest

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.nn.moe import SparseMLP
from llmctl.parallel import experts
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tiny import random_model
from llmctl.train.methods.loss import next_token_loss

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


def compare(mesh):
    rank, found = mesh.data.rank, []
    for case in CASES:
        expected = alone(case)
        model, dims = made(*case)
        experts.divide(model, mesh.axis("expert"))
        total, grads = run(model, dims, range(rank, PASSES, mesh.data.size))
        found.append((expected, total, {name: grad.numpy() for name, grad in grads.items()}))
    return found


@pytest.mark.parametrize(("ranks", "degree"), [(2, 2), (4, 4), (4, 2)])
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

"""Ranks that share every layer train, evaluate and answer as one process: weights, moments, norms, metrics, tokens."""

import numpy as np
import pytest
from kit.families import CASES

from llmctl import plugins
from llmctl.card.sharding import Parallel
from llmctl.checkpoint.partial import WHOLE, Cut
from llmctl.infer.eager.generate import generate
from llmctl.infer.sampling import SamplingParams
from llmctl.nn.dropout import disable_dropout
from llmctl.parallel import regions
from llmctl.parallel.placement import Placement
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tiny import random_model
from llmctl.train.methods.evaluate import token_metrics
from llmctl.train.methods.loss import next_token_loss
from llmctl.train.optim.adamw import AdamW
from llmctl.train.optim.master_weights import MasterWeights

CHOSEN = [next(case for case in CASES if case.family == family) for family in ("llama", "mixtral", "gpt3")]
PROMPTS = [[5, 9, 17, 33], [61, 8, 4]]


def made(case, mesh=None, sequence=False):
    """The model of a rank, how it is cut, its parameters, and their optimizer."""
    plugin = plugins.load(case.family)
    model, cut, weights = random_model(plugin, case.dims), WHOLE, None
    if mesh:
        cut = Cut.of(plugin, case.dims, Parallel(mesh.tensor.size, mesh.tensor.rank))
        cut.apply(model)
        regions.connect(model, plugin.card, case.dims, cut, mesh.tensor, sequence)
    disable_dropout(model)
    parameters = dict(model.named_parameters())
    if mesh:
        placement = Placement(mesh.topology, mesh.place, cut.splits)
        weights = MasterWeights(parameters, mesh, placement, model.complete_grads)
    optimizer = AdamW(parameters, weight_decay=0.1, max_norm=0.05, weights=weights or MasterWeights(parameters))
    return model, cut, parameters, optimizer


def trained(case, mesh=None, sequence=False):
    """Norms of three clipped updates, the weights and moments after them, metrics, and answers."""
    model, cut, parameters, optimizer = made(case, mesh, sequence)
    norms = []
    for step in range(3):
        model.train()
        arrays = {**case.arrays, "input_ids": np.roll(case.arrays["input_ids"], step, axis=0)}
        loss = next_token_loss(model, arrays)
        loss.total.backward()
        optimizer.accumulate_grads()
        optimizer.sum_grads()
        norms.append(optimizer.clip_grads(loss.items))
        optimizer.step(1e-2)
    model.eval()
    metrics = token_metrics(model, [case.arrays])
    answers = [row.ids for row in generate(model, PROMPTS, SamplingParams(max_new_tokens=6), [1], 0)]
    moments = optimizer._update.state()
    return norms, {n: p.numpy() for n, p in parameters.items()}, moments, metrics, answers, cut


def compare(mesh, sequence):
    mine = {n: trained(CHOSEN[n]) for n in range(mesh.tensor.rank, len(CHOSEN), mesh.tensor.size)}
    return mine, [trained(case, mesh, sequence) for case in CHOSEN]


@pytest.mark.parametrize(("degree", "sequence"), [(2, True), (4, False)])
def test_updates_metrics_and_answers_are_those_of_one_process(degree, sequence):
    found = run_ranks(degree, compare, sequence, topology=Topology(tensor=degree))
    for number in range(len(CHOSEN)):
        norms, weights, moments, metrics, answers, _ = found[number % degree][0][number]
        for rank, (_, shared) in enumerate(found):
            own = shared[number]
            cut = own[5]
            np.testing.assert_allclose(own[0], norms, rtol=1e-9, err_msg=CHOSEN[number].family)
            assert own[4] == answers and len(set(answers[0])) > 1
            assert own[3] == pytest.approx(metrics, rel=1e-9)
            assert weights.keys() - own[1].keys() == (cut.first_only if rank else set())
            for name, value in own[1].items():
                np.testing.assert_allclose(value, cut.part(name, weights[name]), rtol=0, atol=1e-9, err_msg=name)
            for name, value in own[2].items():
                part = cut.part(name.partition("/")[2], moments[name]) if name.startswith("moment") else moments[name]
                np.testing.assert_allclose(value, part, rtol=1e-9, atol=1e-12, err_msg=name)


def resumed(mesh):
    """What a rank takes of a whole state of the optimizer, which has biases that are on the first rank only."""
    case = CHOSEN[-1]
    _, weights, state, *_ = trained(case)
    _, cut, _, optimizer = made(case, mesh)
    assert bool(weights.keys() - optimizer.parameters.keys()) == (mesh.tensor.rank > 0)
    assert not optimizer.weights.unlike(weights)
    optimizer.load(state)
    for name, value in optimizer.state().items():
        slot, _, parameter = name.partition("/")
        expected = cut.part(parameter, state[name]) if slot.startswith("moment") else state[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)
    return len(optimizer.state())


def test_the_state_of_one_process_is_resumed():
    first, second = run_ranks(2, resumed, topology=Topology(tensor=2))
    assert first > second > 0

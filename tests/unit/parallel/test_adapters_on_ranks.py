"""Adapters and prefixes of models that ranks share: loss and gradients are those of one process."""

from functools import partial

import numpy as np
import paddle
import pytest
from kit.families import CASES

from llmctl import plugins
from llmctl.adapters import targets
from llmctl.adapters.attach import add_lora, add_prefix
from llmctl.adapters.prefix import shape_of
from llmctl.nn.recompute import recompute_layers
from llmctl.parallel.regions import blocks_of
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tensor_ranks import alone, assert_same, shared

CHOSEN = [case for case in CASES if case.family in ("llama", "qwen", "chatglm2", "bloom", "mixtral", "opt")]
PREFIXES = [case for case in CASES if case.family in ("llama", "qwen3", "chatglm2", "bloom", "opt", "baichuan")]


def with_lora(case, dora, again, model, place):
    """Adapters of every linear with values that are drawn whole; blocks are recomputed if ``again``."""
    card, rng = plugins.load(case.family).card, np.random.default_rng(9)
    linears = targets.linears(card, case.dims)
    place.cut_adapters(linears)
    layers = add_lora(model, linears, 4, 0.5, 0.0, dora, place.totals(linears))
    for path, tensor in linears.items():
        inputs, outputs = tensor.shape
        values = {"lora_A": rng.normal(0, 0.3, (inputs, 4)), "lora_B": rng.normal(0, 0.3, (4, outputs))}
        if dora:
            values["lora_magnitude"] = 10 * rng.normal(1, 0.1, outputs) ** 2
        for name, whole in values.items():
            place.set(f"{path}.{name}", getattr(layers[path], name), whole)
    if again:
        recompute_layers(model, blocks_of(card.expand(case.dims)))


def with_prefix(case, projection, model, place):
    """Three virtual tokens with values that are drawn whole."""
    shape = shape_of(case.dims, 3)
    with paddle.LazyGuard():
        prefix = add_prefix(model, shape, projection)
    place.cut_prefix(*shape[3:], layers=shape[0])
    place.cut.apply(prefix, 5, "prefix.")


def compare(mesh, cases, sequence, change, *options):
    mine = {}
    for number in range(mesh.tensor.rank, len(cases), mesh.tensor.size):
        mine[number] = alone(cases[number], partial(change, cases[number], *options))
    return mine, [shared(mesh, case, sequence, partial(change, case, *options)) for case in cases]


def check(degree, cases, sequence, change, *options):
    found = run_ranks(degree, compare, cases, sequence, change, *options, topology=Topology(tensor=degree))
    for number, case in enumerate(cases):
        expected = found[number % degree][0][number]
        assert expected.grads, case
        assert_same(case, [results[number] for _, results in found], expected, 1e-9)


@pytest.mark.parametrize(("degree", "sequence", "again"), [(2, True, True), (4, False, False)])
def test_lora_and_dora(degree, sequence, again):
    check(degree, CHOSEN, sequence, with_lora, True, again)
    check(degree, CHOSEN[:2], sequence, with_lora, False, again)


@pytest.mark.parametrize(("degree", "sequence"), [(2, True), (4, False)])
def test_prefixes_with_and_without_a_projection(degree, sequence):
    check(degree, PREFIXES, sequence, with_prefix, 0)
    check(degree, PREFIXES[:2], sequence, with_prefix, 6)

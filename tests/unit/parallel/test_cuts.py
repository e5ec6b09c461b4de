"""Which layers and tensors the parts of a pipeline have."""

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.errors import ConfigError
from llmctl.parallel.cuts import _balanced, cut


def cuts_of(family, changes, *args):
    card = plugins.load(family).card
    return card, tiny_dims(card, changes), cut(card, tiny_dims(card, changes), *args)


@pytest.mark.parametrize("family", plugins.Families().names)
def test_every_tensor_is_in_a_part_and_only_a_tied_table_in_two(family):
    card = plugins.load(family).card
    dims = tiny_dims(card)
    cuts = cut(card, dims, 2)
    everything = {tensor.name for tensor in card.expand(dims)}
    assert cuts.names(0) | cuts.names(1) == everything
    both = cuts.names(0) & cuts.names(1)
    assert both == set(cuts.shared)
    slots = {tensor.slot for tensor in card.expand(dims)}
    assert len(both) == ("head" not in slots)


def test_layers_are_given_by_hand_or_balanced_by_their_cost():
    assert [len(part) for part in cuts_of("llama", {"layers": 5}, 4)[2].layers] == [1, 1, 2, 1]
    assert cuts_of("llama", {"layers": 5}, 2, (4, 1))[2].layers == (range(4), range(4, 5))
    card, dims, cuts = cuts_of("llama", {"layers": 12, "vocab": 30000}, 3)
    layer = sum(t.size for t in card.expand(dims) if t.layer == 0)
    ends = sum(t.size for t in card.expand(dims) if t.slot == "embed")
    assert ends > 4 * layer and [len(part) for part in cuts.layers] == [1, 10, 1]


def test_parts_are_as_even_as_any():
    """Against all ways of cutting, in random cases."""
    import itertools

    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(rng.integers(2, 9))
        parts = int(rng.integers(1, count + 1))
        costs = rng.integers(1, 9, count).tolist()
        every = itertools.combinations(range(1, count), parts - 1)
        best = min(max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *inner, count))) for inner in every)
        sizes = _balanced(costs, parts)
        ends = np.cumsum([0, *sizes])
        assert len(sizes) == parts and min(sizes) >= 1 and ends[-1] == count
        assert max(sum(costs[a:b]) for a, b in itertools.pairwise(ends)) == best, (costs, parts, sizes)


def test_a_stage_with_several_parts_has_every_so_many():
    cuts = cuts_of("llama", {"layers": 6}, 3, (), 2)[2]
    assert cuts.layers == tuple(range(n, n + 1) for n in range(6))
    assert [cuts.parts(stage) for stage in range(3)] == [(0, 3), (1, 4), (2, 5)]
    assert "llama.layers.4.mlp.up_proj.weight" in cuts.names(1)
    assert "llama.norm.weight" in cuts.names(2) and "llama.norm.weight" not in cuts.names(0)


def test_a_tensor_that_stands_nowhere_is_named(monkeypatch):
    import dataclasses

    card = plugins.load("llama").card
    params = tuple(dataclasses.replace(p, slot="") if p.slot == "final_ln" else p for p in card.params)
    other = dataclasses.replace(card, params=params)
    with pytest.raises(ConfigError, match=r"llama\.norm\.weight stands before or after the layers"):
        cut(other, tiny_dims(other), 2)

"""Ranks that compute a model together go on with the tokens that one of them chooses, whatever they compute themselves."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.sharding import Parallel
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.partial import Cut
from llmctl.infer.eager.generate import generate
from llmctl.infer.sampling import SamplingParams
from llmctl.parallel import regions
from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import MOST_AXES, TRAFFIC
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tiny import random_model
from llmctl.train import agreement
from llmctl.train.agreement import Agreement
from llmctl.train.optim import units
from llmctl.train.optim.units import Units

PROMPTS = [[5, 9, 17, 33], [61, 8, 4]]
NEW = 5


def answers(model):
    model.eval()
    return [row.ids for row in generate(model, PROMPTS, SamplingParams(max_new_tokens=NEW), [], 0)]


def unlike(mesh, kind):
    """Answers of ranks all of which but the first compute other logits; calls and bytes by which they are told."""
    plugin = plugins.load("llama")
    dims = tiny_dims(plugin.card, {})
    model = random_model(plugin, dims)
    if kind == "tensor":
        cut = Cut.of(plugin, dims, Parallel(mesh.tensor.size, mesh.tensor.rank))
        cut.apply(model)
        regions.connect(model, plugin.card, dims, cut, mesh.tensor)
    else:
        Units(dict(model.named_parameters()), mesh, units.layers_in(model, regions.units_of(plugin.card.expand(dims))))
    model.agreement = Agreement([mesh.axis("block"), mesh.tensor], mesh.pipeline)
    logits = model.logits
    model.logits = lambda hidden: logits(hidden) * (-1.0 if mesh.rank.number else 1.0)
    TRAFFIC.clear()
    told = "block" if kind == "sharding" else kind, "broadcast"
    return answers(model), TRAFFIC.calls[told], TRAFFIC.bytes[told]


@pytest.mark.parametrize("kind", ["tensor", "sharding"])
def test_ranks_whose_logits_differ_answer_alike(kind):
    plugin = plugins.load("llama")
    alone = answers(random_model(plugin, tiny_dims(plugin.card, {})))
    for found in run_ranks(2, unlike, kind, topology=Topology(**{kind: 2})):
        # The next ids of two rows go to the other rank, for each token, after their type and shape; logits do not.
        assert found == (alone, 2 * NEW, NEW * 8 * (2 + MOST_AXES + 2))


class Room:
    """The ranks of a group, as threads, and what one of them tells the others."""

    def __init__(self, ranks):
        self.barrier, self.told = threading.Barrier(len(ranks), timeout=10), None

    def tell(self, value, own):
        self.told = value if own else self.told
        self.barrier.wait()
        told = self.told
        self.barrier.wait()
        return told


@pytest.mark.parametrize(
    ("topology", "chooses"),
    [
        (Topology(sharding=2, tensor=2), 0),
        (Topology(pipeline=2, tensor=2, data=2), 4),
        (Topology(pipeline=3, sharding=2, tensor=2), 8),
        (Topology(data=2, sharding=6, expert=4), 0),
    ],
    ids=str,
)
def test_the_first_rank_of_the_last_stage_chooses(topology, chooses, monkeypatch):
    rooms = {ranks: Room(ranks) for name in ("block", "tensor", "pipeline") for ranks in topology.groups(name)}
    monkeypatch.setattr(
        agreement, "broadcast_array", lambda value, axis, source: axis.group.tell(value, axis.rank == source)
    )

    def axis(name, rank):
        peers = topology.peers(name, rank)
        return Axis(name, peers.index(rank), len(peers), rooms[peers])

    def chosen(rank):
        return Agreement([axis("block", rank), axis("tensor", rank)], axis("pipeline", rank)).chosen(lambda: rank)

    copy = [rank for rank in range(topology.size) if topology.batch_number(rank) < topology.block]
    with ThreadPoolExecutor(len(copy)) as threads:
        assert list(threads.map(chosen, copy)) == [chooses] * len(copy)


def test_a_rank_alone_chooses():
    one = Axis("tensor", 0, 1)
    assert Agreement([one], one).chosen(lambda: np.array([7])).tolist() == [7]

"""The arrangement of ranks is that of paddle's fleet."""

import itertools

import pytest

from llmctl.parallel.topology import AXES, Coordinates, Topology

SHAPES = [
    Topology(),
    Topology(data=4),
    Topology(tensor=2, pipeline=2),
    Topology(data=2, tensor=2, pipeline=2),
    Topology(data=2, tensor=2, sharding=2),
    Topology(data=2, tensor=3, pipeline=4, sharding=2, expert=4),
    Topology(data=3, sharding=4, tensor=2, expert=6),
]
EXPERT_AXES = ("expert", "expert_sharding", "expert_data")


@pytest.mark.parametrize("topology", SHAPES, ids=str)
def test_fleet_has_the_same_ranks(topology):
    from paddle.distributed.fleet.base.topology import CommunicateTopology

    fleet = CommunicateTopology(list(AXES), [getattr(topology, name) for name in AXES])
    assert topology.size == fleet.world_size()
    for rank in range(topology.size):
        assert tuple(topology.coordinates(rank)) == tuple(fleet.get_coord(rank))
    for axis in AXES:
        assert topology.groups(axis) == sorted(tuple(group) for group in fleet.get_comm_list(axis))


@pytest.mark.parametrize("topology", SHAPES, ids=str)
def test_places_and_ranks_belong_to_each_other(topology):
    ranks = range(topology.size)
    assert [topology.rank(topology.coordinates(rank)) for rank in ranks] == list(ranks)
    for axis, rank in itertools.product((*AXES, "batch", "block", *EXPERT_AXES), ranks):
        peers = topology.peers(axis, rank)
        assert rank in peers and all(topology.peers(axis, other) == peers for other in peers)


@pytest.mark.parametrize("topology", SHAPES, ids=str)
def test_groups_along_an_axis_have_every_rank_once(topology):
    for axis in (*AXES, "batch", "block", *EXPERT_AXES):
        groups = topology.groups(axis)
        assert sorted(itertools.chain(*groups)) == list(range(topology.size))
        assert groups == sorted({topology.peers(axis, rank) for rank in range(topology.size)})


@pytest.mark.parametrize("topology", SHAPES, ids=str)
def test_ranks_with_the_same_experts_are_those_with_slices_times_those_with_copies(topology):
    for rank in range(topology.size):
        place = topology.batch_number(rank) % topology.expert
        alike = {r for r in topology.peers("batch", rank) if topology.batch_number(r) % topology.expert == place}
        found = [topology.peers("expert_data", one) for one in topology.peers("expert_sharding", rank)]
        assert sorted(itertools.chain(*found)) == sorted(alike)
        assert len(found) == topology.expert_sharding and {len(copies) for copies in found} == {topology.expert_data}


def test_without_divided_experts_their_axes_are_those_of_all_else():
    topology = Topology(data=3, sharding=4, tensor=2)
    assert topology.groups("expert_sharding") == topology.groups("sharding")
    assert topology.groups("expert_data") == topology.groups("data")


@pytest.mark.parametrize(
    ("degrees", "slices", "copies"),
    [
        ({"data": 2, "sharding": 4, "expert": 2}, (0, 2), (0, 4)),  # inside of a sharding group
        ({"data": 4, "sharding": 2, "expert": 4}, (0,), (0, 4)),  # two whole sharding groups
        ({"data": 3, "sharding": 4, "expert": 6}, (0, 6), (0,)),  # neither divides the other
    ],
)
def test_experts_fill_sharding_groups_first(degrees, slices, copies):
    topology = Topology(**degrees)
    assert topology.peers("expert", 0) == tuple(range(degrees["expert"]))
    assert topology.peers("expert_sharding", 0) == slices and topology.peers("expert_data", 0) == copies


def test_experts_are_shared_by_ranks_with_different_rows():
    topology = Topology(data=2, sharding=2, tensor=2, expert=2)
    assert topology.peers("batch", 3) == (1, 3, 5, 7)
    assert [topology.batch_number(rank) for rank in (1, 3, 5, 7)] == [0, 1, 2, 3]
    assert topology.peers("expert", 3) == (1, 3) and topology.peers("expert", 5) == (5, 7)
    assert topology.peers("expert_data", 3) == (3, 7) and topology.peers("expert_sharding", 3) == (3,)


@pytest.mark.parametrize(
    "degrees, text",
    [
        ({"tensor": 0}, "tensor must be 1 or more, not 0"),
        ({"data": 2, "sharding": 3, "expert": 4}, "expert=4 does not divide the 6 ranks of data x sharding"),
    ],
)
def test_impossible_degrees(degrees, text):
    with pytest.raises(ValueError, match=text):
        Topology(**degrees)


def test_no_such_rank_place_or_axis():
    topology = Topology(tensor=2)
    with pytest.raises(ValueError, match="no rank 2 among 2"):
        topology.coordinates(2)
    with pytest.raises(ValueError, match="no place 1 among the 1 of data"):
        topology.rank(Coordinates(0, 1, 0, 0))
    with pytest.raises(ValueError, match="there is no axis sep"):
        topology.peers("sep", 0)


def test_the_ends_of_a_pipeline_have_a_group_of_their_own():
    three = Topology(pipeline=3, tensor=2)
    assert [three.peers("ends", rank) for rank in range(6)] == [(0, 4), (1, 5), (2,), (3,), (0, 4), (1, 5)]
    assert Topology(pipeline=2).peers("ends", 1) == (0, 1) and Topology(data=2).peers("ends", 1) == (1,)

"""Whole tensors on rank 0, from parts and slices of ranks, while these answer."""

import numpy as np
import paddle
import pytest

from llmctl.card.sharding import Segment, Split
from llmctl.checkpoint.shards import split
from llmctl.parallel.placement import Placement
from llmctl.parallel.slicing import Slicing
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.train import full_state
from llmctl.train.full_state import FullState, Part

SPLITS = {
    # Shares of unlike sizes; two kinds of columns, of which the second is on both ranks.
    "table": Split(0, "vocab", (Segment(1, 5, 1),)),
    "fused": Split(1, "heads", (Segment(1, 4, 1), Segment(1, 1, 2, replicas=2))),
}
SHAPES = {"table": (5, 3), "fused": (3, 6), "norm": (7,), "half": (4, 2)}


def _values(dtype="float64"):
    rng = np.random.default_rng(8)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


def _read(mesh):
    """All tensors of a whole and of a sliced part of the state, on rank 0."""
    placement = Placement(mesh.topology, mesh.place, SPLITS)
    own = {
        name: split(value, SPLITS[name], mesh.tensor.rank, mesh.tensor.size) if name in SPLITS else value
        for name, value in _values().items()
    }
    slicing = {name: Slicing(value.shape, mesh.sharding.size) for name, value in own.items() if name != "half"}
    moments = {f"m/{n}": one.rows(paddle.to_tensor(own[n]))[mesh.sharding.rank].numpy() for n, one in slicing.items()}
    model = {name: paddle.to_tensor(value) for name, value in own.items()}
    model["half"] = model["half"].astype("bfloat16")
    full_state.PATIENCE = 0.01
    asked, found = [], {}
    state = FullState(
        mesh,
        placement,
        {
            "model": Part(lambda: model, lambda name: name, {}),
            "moments": Part(
                lambda: {**moments, "p/norm": np.ones(1)}, lambda n: n[2:] if n[0] == "m" else None, slicing
            ),
        },
    )
    ask = state._ask
    state._ask = lambda kind, *args, **more: (asked.append(kind), ask(kind, *args, **more))

    def work():
        # The others hear several times that there will be more.
        while asked.count(full_state.MORE) < 3:
            pass
        found.update(
            {
                part: {n: (t.shape, t.astype("float64").numpy()) for n, t in state.state(part).items()}
                for part in ("model", "moments")
            }
        )
        raise OSError("the disk is full")

    if mesh.main:
        with pytest.raises(OSError, match="full"), mesh._asking():
            work()
    else:
        mesh._answer()
    return found


def test_rank_0_reads_whole_tensors_by_name_and_a_failure_there_ends_the_answers():
    found = run_ranks(4, _read, topology=Topology(tensor=2, sharding=2))[0]
    values = _values()
    assert found["model"].keys() == values.keys()
    assert found["moments"].keys() == {"m/table", "m/fused", "m/norm", "p/norm"}
    for name, value in values.items():
        shape, read = found["model"][name]
        assert shape == value.shape
        np.testing.assert_allclose(read, value, rtol=0 if name != "half" else 1e-2)
        if name != "half":
            shape, read = found["moments"][f"m/{name}"]
            assert shape == value.shape and (read == value).all(), name

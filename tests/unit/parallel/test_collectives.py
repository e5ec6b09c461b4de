"""Collective operations against numpy, their gradients, and what is counted of them."""

import numpy as np
import paddle

from llmctl.parallel import collectives
from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import Divide, Enter, Join, Leave, ShareGrad
from llmctl.parallel.faults import watch
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks


def test_a_rank_alone_sends_nothing_and_changes_nothing():
    alone, x = Axis("tensor", 0, 1), paddle.to_tensor(np.arange(6.0).reshape(1, 3, 2))
    before = dict(collectives.TRAFFIC.calls)
    results = [
        collectives.all_reduce(x.clone(), alone),
        collectives.all_gather(x, alone),
        collectives.reduce_scatter(x, alone),
        collectives.all_to_all(x, [1], [1], alone),
        collectives.broadcast(x.clone(), alone),
        *(layer.apply(x, alone) for layer in (Enter, Leave, Divide, Join)),
    ]
    collectives.all_reduce_all([x], alone)
    assert all(np.array_equal(result.numpy(), x.numpy()) for result in results)
    assert dict(collectives.TRAFFIC.calls) == before and not watch.WAIT.what


RANKS = 3


def values(rank, *shape):
    return np.random.default_rng(rank).normal(size=shape)


def exchange(mesh):
    """What a rank gets from every operation, and the gradients that come back through every layer."""
    axis, rank = mesh.tensor, mesh.tensor.rank
    x = paddle.to_tensor(values(rank, 2, 6, 4))
    uneven = paddle.to_tensor(np.arange(6.0).reshape(6, 1) + 10 * rank)
    collectives.TRAFFIC.clear()
    found = {
        "sum": collectives.all_reduce(x.clone(), axis),
        "max": collectives.all_reduce(x.clone(), axis, "max"),
        "gathered": collectives.all_gather(x, axis, 1),
        "last": collectives.all_gather(x, axis, -1),
        "scattered": collectives.reduce_scatter(x, axis, 1),
        "sent": collectives.all_to_all(uneven, [1, 2, 3], [rank + 1] * RANKS, axis),
        "told": collectives.broadcast(x.clone(), axis, 1),
    }
    calls, sizes = dict(collectives.TRAFFIC.calls), dict(collectives.TRAFFIC.bytes)
    many = [paddle.to_tensor(values(rank, n)) for n in (3, 5)] + [paddle.ones([2], "float32")]
    collectives.all_reduce_all(many, axis)
    found |= {f"many{i}": each for i, each in enumerate(many)}
    for name, layer, args in [
        ("enter", Enter, (axis,)), ("enter tokens", Enter, (axis, True)), ("leave", Leave, (axis,)),
        ("leave tokens", Leave, (axis, True)), ("divide", Divide, (axis,)), ("join", Join, (axis,)),
        ("share", ShareGrad, (axis,)),
    ]:  # fmt: skip
        given = x.clone().detach()
        given.stop_gradient = False
        y = layer.apply(given, *args)
        (y * paddle.to_tensor(values(10 + rank, *y.shape))).sum().backward()
        found[name], found[f"{name} grad"] = y.detach(), given.grad
    return {name: each.numpy() for name, each in found.items()}, calls, sizes


def test_operations_and_their_gradients_are_those_of_numpy():
    results = run_ranks(RANKS, exchange, topology=Topology(tensor=RANKS))
    x = [values(rank, 2, 6, 4) for rank in range(RANKS)]
    whole, total = np.concatenate(x, axis=1), sum(x)
    grads = {n: [values(10 + rank, 2, n, 4) for rank in range(RANKS)] for n in (2, 6, 18)}
    sent = [np.arange(6.0).reshape(6, 1) + 10 * rank for rank in range(RANKS)]
    for rank, (found, calls, sizes) in enumerate(results):
        own, mine = slice(2 * rank, 2 * rank + 2), slice(6 * rank, 6 * rank + 6)
        expected = {
            "sum": total, "max": np.max(x, axis=0), "gathered": whole, "last": np.concatenate(x, axis=-1),
            "scattered": total[:, own], "told": x[1],
            "sent": np.concatenate([rows[[0, 1, 3, 6][rank] : [0, 1, 3, 6][rank + 1]] for rows in sent]),
            "many0": sum(values(r, 3) for r in range(RANKS)), "many1": sum(values(r, 5) for r in range(RANKS)),
            "many2": np.full(2, 3.0),
            "enter": x[rank], "enter grad": sum(grads[6]),
            "enter tokens": whole, "enter tokens grad": sum(grads[18])[:, mine],
            "leave": total, "leave grad": grads[6][rank],
            "leave tokens": total[:, own], "leave tokens grad": np.concatenate(grads[2], axis=1),
            "divide": x[rank][:, own], "divide grad": np.concatenate(grads[2], axis=1),
            "join": whole, "join grad": grads[18][rank][:, mine],
            "share": x[rank], "share grad": grads[6][rank] / RANKS,
        }  # fmt: skip
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)
        each = 2 * 6 * 4 * 8
        assert calls == {("tensor", "all_reduce"): 2, ("tensor", "all_gather"): 2, ("tensor", "reduce_scatter"): 1,
                         ("tensor", "all_to_all"): 1, ("tensor", "broadcast"): 1}  # fmt: skip
        assert sizes == {("tensor", "all_reduce"): 2 * each, ("tensor", "all_gather"): 6 * each,
                         ("tensor", "reduce_scatter"): each, ("tensor", "all_to_all"): 6 * 8,
                         ("tensor", "broadcast"): each}  # fmt: skip

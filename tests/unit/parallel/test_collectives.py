"""Collective operations against numpy, their gradients, and what is counted of them."""

import numpy as np
import paddle

from llmctl.parallel import collectives
from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import Divide, Enter, Join, Leave


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
    assert dict(collectives.TRAFFIC.calls) == before and collectives.TRAFFIC.waiting is None

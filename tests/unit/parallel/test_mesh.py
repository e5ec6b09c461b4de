"""Ranks on this machine: forks of this process, over gloo."""

import numpy as np
import paddle
import pytest
from kit.loop_toys import ROWS, Record, task, weights
from kit.train_toys import ToyModel

from llmctl.parallel import mesh
from llmctl.parallel.rank import Rank
from llmctl.parallel.ranks import ALONE
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.train.callbacks.base import Callback, LoopSettings
from llmctl.train.loop import Loop, own_passes
from llmctl.train.optim.adamw import AdamW
from llmctl.train.optim.master_weights import MasterWeights


def _parameter(value, grad, dtype="float64"):
    made = paddle.create_parameter([len(value)], dtype)
    made.set_value(paddle.to_tensor(np.asarray(value, dtype)))
    if grad is not None:
        made.grad = paddle.to_tensor(np.asarray(grad, dtype))
    return made


def _calls(ranks):
    """What the methods give, in one start of the ranks."""
    ranks.bucket = 24
    one = ranks.number + 1.0
    grads = [
        _parameter([0, 0], [one, 2 * one]),
        _parameter([0], [one] if ranks.number == 1 else None),
        _parameter([0], None),
        _parameter([0, 0, 0], [one] * 3, "float32"),
        _parameter([0] * 5, [10 * one] * 5),
    ]
    totals = ranks.total([one, True, 1e300])
    ranks.sum_grads(grads)
    told = ranks.broadcast_object({"a": [1, "ü", None]} if ranks.main else "ignored")
    ranks.check_equal([1.0, 2.0])
    try:
        ranks.check_equal([1.0, 2.0 + 1e-3 * ranks.number])
        unlike = None
    except RuntimeError as error:
        unlike = str(error)
    return totals, [None if p.grad is None else p.grad.numpy().tolist() for p in grads], told, unlike


def test_all_ranks_get_the_same_sums_messages_and_verdicts():
    found = run_ranks(3, _calls)
    for totals, grads, told, unlike in found:
        assert totals == [6.0, 3.0, 3e300]
        assert grads == [[6.0, 12.0], [2.0], None, [6.0] * 3, [60.0] * 5]
        assert told == {"a": [1, "ü", None]}
        assert "different weights" in unlike


def _axes(mesh):
    """The sum of the ranks along each axis, by its group, and what ``total`` and ``any`` make of the numbers of ranks."""
    sums = {}
    for name in ("pipeline", "data", "sharding", "tensor", "batch", "expert_sharding", "expert_data"):
        axis, number = mesh.axis(name), paddle.to_tensor([float(mesh.rank.number)])
        assert (axis.group is None) == (axis.size == 1)
        if axis.group:
            assert axis.group.rank == axis.rank and axis.group.nranks == axis.size
            paddle.distributed.all_reduce(number, group=axis.group)
        sums[name] = number.item()
    return sums, mesh.total([mesh.rank.number]), mesh.any([mesh.rank.number == 2, False]), mesh.main


@pytest.mark.parametrize(
    "topology",
    [Topology(data=2, tensor=2), Topology(sharding=2, pipeline=2), Topology(data=2, sharding=2, expert=2)],
    ids=["data-tensor", "sharding-pipeline", "data-sharding-expert"],
)
def test_each_axis_connects_its_ranks(topology):
    lasts = [rank for rank in range(4) if topology.coordinates(rank).pipeline == topology.pipeline - 1]
    with_loss = [rank for rank in lasts if topology.coordinates(rank).tensor == 0]
    for rank, (sums, total, flags, main) in enumerate(run_ranks(4, _axes, topology=topology)):
        assert sums == {name: sum(topology.peers(name, rank)) for name in sums}
        assert total == [sum(with_loss)] and flags == [True, False] and main == (rank == 0)


def test_a_topology_of_another_number_of_ranks_is_refused():
    with pytest.raises(ValueError, match="the topology has 4 ranks, the run 2"):
        mesh.Mesh(Topology(data=2, tensor=2), Rank(0, 2))


def _fails(ranks):
    if ranks.number == 1:
        raise ValueError("boom")
    ranks.total([1.0])


def test_a_rank_whose_peer_is_gone_says_so_and_not_the_peers_error():
    with pytest.raises(AssertionError, match="ValueError: boom"):
        run_ranks(2, _fails)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (4, 2), (7, 3), (2, 3), (1, 4), (8, 3)])
def test_each_pass_belongs_to_one_rank_and_all_have_as_many(count, size):
    shares = [own_passes(count, rank, size) for rank in range(size)]
    assert sorted(number for share in shares for number, weight in share if weight) == list(range(count))
    assert len({len(share) for share in shares}) == 1 and all(0 <= n < count for share in shares for n, _ in share)


class _Stopper(Callback):
    def on_evaluate(self, step, epoch, metrics):
        self.stop = step >= 6


class _Noisy(ToyModel):
    """Draws numbers in each forward pass."""

    def hidden_states(self, *args):
        hidden = super().hidden_states(*args)
        return hidden + 0.1 * paddle.randn(hidden.shape, dtype=hidden.dtype) if self.training else hidden


def _train(ranks, accumulation):
    model, record = _Noisy(), Record()
    parameters = dict(model.named_parameters())
    adamw = AdamW(parameters, max_norm=0.05, weight_decay=0.1, weights=MasterWeights(parameters, ranks))
    settings = LoopSettings(20, 3, 4, seed=5)
    callbacks = [record, _Stopper()] if ranks.main else []
    # 23 rows: the last step of an epoch has fewer passes.
    one = Loop(model, task(2, accumulation, dev=ROWS[:4], rows=ROWS[:23]), adamw, lambda step: 0.05, settings, callbacks, ranks=ranks)  # fmt: skip
    return one.run(), record.events, record.losses, record.norms, weights(model), adamw.state()


@pytest.mark.parametrize(("size", "accumulation"), [(2, 5), (3, 3), (3, 5)])
def test_several_ranks_train_as_one_process_does(size, accumulation):
    """Loss, clipped norm, weights, moments, noise, evaluations and an early end; uneven shares and short last steps."""
    last, events, losses, norms, right, state = _train(ALONE, accumulation)
    assert last == 6
    found = run_ranks(size, _train, accumulation)
    assert found[0][:2] == (last, events)
    np.testing.assert_allclose(found[0][2], losses, rtol=1e-12)
    np.testing.assert_allclose(found[0][3], norms, rtol=1e-11)
    for done, _, _, _, model, moments in found:
        assert done == last
        for name, value in right.items():
            np.testing.assert_allclose(model[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
        assert moments.keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_allclose(moments[name], value, rtol=1e-9, atol=1e-15, err_msg=name)
    assert all((found[0][4][name] == found[-1][4][name]).all() for name in right)

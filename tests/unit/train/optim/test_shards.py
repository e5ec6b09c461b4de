"""Sharded training equals that of one process: stages 1 and 2, alone and with data parallelism."""

import numpy as np
import paddle
import pytest
from kit.loop_toys import ROWS, Record, task, weights
from kit.train_toys import ToyModel

from llmctl.parallel.ranks import ALONE
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.train.callbacks.base import LoopSettings
from llmctl.train.loop import Loop
from llmctl.train.optim.adamw import AdamW, trained
from llmctl.train.optim.loss_scaler import LossScaler
from llmctl.train.optim.master_weights import MasterWeights
from llmctl.train.optim.shards import Shards, Slicing


class _Idle(ToyModel):
    """Has a parameter that no pass reaches, one that only passes of long rows do, and a frozen one."""

    def __init__(self, dtype):
        super().__init__(dtype)
        constant = paddle.nn.initializer.Constant(0.3)
        self.unused, self.rare, self.frozen = (
            self.create_parameter([size], dtype=dtype, default_initializer=constant) for size in (3, 6, 5)
        )
        self.frozen.stop_gradient = True
        self.bias.stop_gradient = True

    def hidden_states(self, input_ids, *args):
        hidden = super().hidden_states(input_ids, *args)
        return hidden + self.rare if input_ids.shape[1] >= 10 else hidden


def _train(ranks, stage, dtype, accumulation, offload=False, state=None):
    model, record = _Idle(dtype), Record()
    parameters, ranks.bucket = trained(dict(model.named_parameters())), 400
    if stage:
        held = Shards(parameters, ranks, stage, offload=offload)
    else:
        held = MasterWeights(parameters, ranks, offload=offload)
    scaler = LossScaler(256.0, 2) if dtype == "float16" else None
    adamw = AdamW(parameters, max_norm=0.05, weight_decay=0.1, lr_scales=lambda name: 2.0 if name == "head" else 1.0, decays=lambda name: name != "norm", save_masters=dtype != "float64", scaler=scaler, weights=held)  # fmt: skip
    if state:
        adamw.load(state)
    callbacks = [record] if ranks.main else []
    data = task(2, accumulation, dev=ROWS[:4], rows=ROWS[:23])
    Loop(model, data, adamw, lambda step: 0.05, LoopSettings(4, 3, 4, seed=5), callbacks, ranks=ranks).run()
    return record.losses, record.norms, weights(model), adamw.state(), {n: s.size for n, s in held.tensors.items()}


CASES = [
    (Topology(sharding=2), 1, "float64", 5, False),
    (Topology(sharding=3), 2, "float64", 5, False),
    (Topology(data=2, sharding=2), 1, "float64", 5, True),
    (Topology(data=2, sharding=2), 2, "float64", 7, True),
]


@pytest.mark.parametrize(("topology", "stage", "dtype", "accumulation", "offload"), CASES)
def test_sharded_ranks_train_as_one_process_does(topology, stage, dtype, accumulation, offload):
    """Loss, clipped norm, weights, and each rank's slice of the moments."""
    losses, norms, right, state, _ = _train(ALONE, 0, dtype, accumulation, offload)
    found = run_ranks(topology.size, _train, stage, dtype, accumulation, offload, topology=topology)
    np.testing.assert_allclose(found[0][0], losses, rtol=1e-12)
    np.testing.assert_allclose(found[0][1], norms, rtol=1e-11)
    for rank, (_, _, model, moments, sizes) in enumerate(found):
        for name, value in right.items():
            np.testing.assert_allclose(model[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
        assert moments.keys() == state.keys()
        place = topology.coordinates(rank).sharding
        for name, value in state.items():
            slot, _, parameter = name.partition("/")
            if slot.startswith("moment"):
                slicing = Slicing(value.shape, topology.sharding)
                assert moments[name].size == sizes[parameter] == -(-value.size // topology.sharding)
                value = slicing.rows(paddle.to_tensor(value))[place].numpy()
            np.testing.assert_allclose(moments[name], value, rtol=1e-9, atol=1e-15, err_msg=name)
    assert "moment1/unused" not in state and "moment1/rare" in state


def _half(ranks, stage, dtype, offload=False):
    """Three steps of given gradients, of which each rank has its own; the second one overflows."""
    rng = np.random.default_rng(4)
    parameters = {
        name: paddle.create_parameter(shape, dtype, default_initializer=paddle.nn.initializer.Constant())
        for name, shape in (("a", [5]), ("b", [3, 3]))
    }
    for parameter in parameters.values():
        parameter.set_value(paddle.to_tensor(rng.normal(size=parameter.shape)).astype(dtype))
    if stage:
        held = Shards(parameters, ranks, stage, offload=offload)
    else:
        held = MasterWeights(parameters, ranks, offload=offload)
    adamw = AdamW(parameters, max_norm=1.0, weights=held, save_masters=True, scaler=LossScaler(4.0, 2))
    norms = []
    for step in range(3):
        for number in range(4):
            for parameter in parameters.values():
                values = paddle.to_tensor(rng.normal(size=parameter.shape) * (np.inf if step == 1 else 1)).astype(dtype)
                if number % ranks.size == ranks.number:
                    parameter.grad = values
            adamw.accumulate_grads()
        adamw.sum_grads()
        norms.append(adamw.clip_grads(4.0))
        if np.isfinite(norms[-1]):
            adamw.step(0.1)
        else:
            assert adamw.scaler.overflowed()
            adamw.clear_grads()
    wide = {name: p.astype("float64").numpy() for name, p in parameters.items()}
    return norms, wide, adamw.state()["loss_scale"].tolist()


@pytest.mark.parametrize(
    ("stage", "dtype", "offload"), [(1, "float16", False), (1, "float16", True), (2, "bfloat16", False)]
)
def test_half_types_have_slices_in_float32_and_all_ranks_skip_a_step_that_overflows(stage, dtype, offload):
    norms, right, scale = _half(ALONE, 0, dtype)
    _, same, same_scale = _half(ALONE, 0, dtype, offload)
    assert same_scale == scale and all((same[name] == value).all() for name, value in right.items())
    assert not np.isfinite(norms[1]) and scale == [2.0, 1.0, 1.0]
    for found, values, found_scale in run_ranks(2, _half, stage, dtype, offload, topology=Topology(sharding=2)):
        np.testing.assert_allclose(found[::2], norms[::2], rtol=1e-6)
        assert not np.isfinite(found[1]) and found_scale == scale
        for name, value in right.items():
            np.testing.assert_array_equal(values[name], value)


def _loaded(mesh, state):
    """A state of whole arrays goes into slices, and a wrong shape is refused."""
    _, _, model, after, _ = _train(mesh, 1, "float32", 2, state=state)
    parameters = trained(dict(_Idle("float32").named_parameters()))
    adamw = AdamW(parameters, weights=Shards(parameters, mesh))
    try:
        adamw.load({**state, "moment1/head": np.zeros([2, 2], np.float32)})
        said = ""
    except ValueError as error:
        said = str(error)
    return model, said


def test_a_state_of_one_process_continues_in_slices():
    state = _train(ALONE, 0, "float32", 2)[3]
    assert "weight/head" in state
    right = _train(ALONE, 0, "float32", 2, state=state)[2]
    for model, said in run_ranks(3, _loaded, state, topology=Topology(sharding=3)):
        assert said == "moment1/head has shape [2, 2], the parameter [6, 13]"
        for name, value in right.items():
            np.testing.assert_allclose(model[name], value, rtol=2e-5, atol=1e-6, err_msg=name)

"""Passes through the stages of a pipeline, as in one process; each start of ranks runs several cases."""

import inspect

import numpy as np
import pytest
from kit.staged import answered, staged, whole
from paddle.distributed.fleet.meta_parallel import PipelineLayer, PipelineParallel, PipelineParallelWithInterleave
from paddle.distributed.fleet.meta_parallel.pp_utils.p2p_communication import P2pHelper

from llmctl.parallel.collectives import MOST_AXES
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks

EXACT = 1e-12


def _all(mesh, cases):
    return [staged(mesh, *case) for case in cases]


def check(pipeline, *cases):
    """The grads of each stage, by case."""
    cases = [(*case, *DEFAULTS[len(case) - 2 :]) for case in cases]
    ranks = run_ranks(pipeline, _all, cases, topology=Topology(pipeline=pipeline))
    for case, *found in zip(cases, *ranks, strict=True):
        family, changes, count, kind, _, chunks = case
        losses, expected = whole(family, changes, count, kind)
        np.testing.assert_allclose(found[-1][0], losses, rtol=EXACT, err_msg=str(case))
        assert all(not rank[0] for rank in found[:-1])
        grads = {}
        for _, own, done in found:
            steps = [max(passes, 2 * pipeline * (chunks > 1)) for passes in (count, count - 1)]
            assert done == chunks * sum(steps)
            for name, grad in own.items():
                # What several stages have is whole on all of them.
                np.testing.assert_array_equal(grads.setdefault(name, grad), grad)
        assert grads.keys() == expected.keys(), case
        for name, grad in expected.items():
            limit = EXACT * np.abs(grad).max() + 1e-15
            np.testing.assert_allclose(grads[name], grad, rtol=0, atol=limit, err_msg=f"{case}: {name}")
    return [[rank[case][1].keys() for rank in ranks] for case in range(len(cases))]


def check_answers(pipeline, *cases):
    ranks = run_ranks(pipeline, _answers, cases, topology=Topology(pipeline=pipeline))
    for case, *found in zip(cases, *ranks, strict=True):
        metrics, cached, again, _ = answered(None, *case[:2])
        # The next ids of three rows go to the other stages, for each token, after their type and shape; logits do not.
        told = 2 * 6 * 8 * (3 + MOST_AXES + 2)
        for rank in found:
            assert rank[0] == pytest.approx(metrics, rel=EXACT), case
            assert rank[1:3] == (cached, again), case
            assert rank[3]["pipeline", "broadcast"] == told, case


def _answers(mesh, cases):
    return [answered(mesh, *case) for case in cases]


DEFAULTS = (5, "", (), 1)
"""Of what follows family and changes: passes, kind, layers of the stages, parts of each."""


def test_two_stages_give_the_losses_and_gradients_of_one_process():
    plain, tied = check(2, ("llama", {"kv_heads": 2, "layers": 4}), ("llama", {"layers": 2, "tied": True}, 3))
    assert not plain[0] & plain[1]
    assert tied[0] & tied[1] == {"llama.embed_tokens.weight"}


def test_every_stage_gets_the_metrics_and_answers_of_one_process():
    check_answers(2, ("llama", {"kv_heads": 2, "layers": 3}))


@pytest.mark.parallel
def test_answers_of_three_stages_and_of_several_parts():
    check_answers(3, ("llama", {"layers": 4}), ("llama", {"layers": 7, "tied": True}, (), 2), ("opt", {"layers": 3}))


@pytest.mark.parallel
def test_everything_that_is_trained_passes_two_stages():
    deep = {"layers": 4}
    check(
        2,
        ("llama", {"layers": 5}, 2, "", (4, 1)),
        ("llama", deep, 3, "recompute"),
        ("llama", deep, 3, "reference"),
        ("llama", deep, 3, "frozen start"),
        ("llama", deep, 3, "prefix"),
        ("llama", deep, 3, "prefix projection"),
        ("mixtral", {"layers": 4, "balance": True}, 3),
        ("qwen2_moe", {}, 3),
        ("chatglm", {"gmask": 90, "bos": 91, "mask": 92}, 3),
        *((family, {}, 3) for family in ("bloom", "gpt3", "opt", "chatglm2", "baichuan", "qwen")),
    )


@pytest.mark.parallel
def test_four_stages_share_five_layers():
    check(
        4,
        ("llama", {"kv_heads": 2, "layers": 5}, 7),
        ("llama", {"layers": 4, "tied": True}),
        ("llama", {"layers": 4}, 3, "reference"),
        ("mixtral", {"layers": 4, "balance": True}, 2),
        ("llama", {"layers": 4}, 3, "prefix projection"),
    )


@pytest.mark.parallel
def test_stages_of_several_parts():
    check(
        3,
        ("llama", {"layers": 6}, 8, "", (), 2),
        ("llama", {"layers": 7, "tied": True}, 6, "", (), 2),
        ("llama", {"layers": 6}, 6, "reference", (), 2),
        ("mixtral", {"layers": 6, "balance": True}, 6, "", (), 2),
    )


def test_what_is_used_of_paddles_schedules_is_there():
    """Names without a promise: they are checked here, where their absence has a plain message."""
    for schedule in (PipelineParallel, PipelineParallelWithInterleave):
        assert all(hasattr(schedule, name) for name in ("_broadcast_final_loss", "_backward_step", "_init_user_hooks"))
        assert list(inspect.signature(schedule.forward_backward_pipeline).parameters)[1:3] == ["data", "scaler"]
    assert {"layers", "num_stages", "topology", "loss_fn", "seg_method", "num_virtual_pipeline_stages"} <= set(
        inspect.signature(PipelineLayer.__init__).parameters
    )
    assert "batch_p2p_comm" in inspect.signature(P2pHelper.recv_forward).parameters
    assert {"_send_recv_meta_list", "_dynamic_cnt"} <= vars(P2pHelper(True, dynamic_shape=True)).keys()

"""Costs of a step: formulas against counts by hand, and what changes them."""

import dataclasses
import json

import pytest

from llmctl.errors import ConfigError, FileError
from llmctl.parallel.costs import step as costs
from llmctl.parallel.costs.hardware import DEFAULT, HARDWARE, Link, calibrated, find, fitted
from llmctl.parallel.costs.step import Plan, Traffic, Work, bubble, in_passes, in_update, link_of
from llmctl.parallel.topology import Topology

WORK = Work(passes=3, tokens=10, labels=7, hidden=4, layers=2, mixtures=0, top_k=2, width=8, parameters=100, held=120,
            flops=1e15, tensors=5)  # fmt: skip
ENDS = True, True


def counted(traffic):
    """(axis, op, size) -> calls, without those of size 0."""
    found = {}
    for one in traffic:
        key = one.axis, one.op, one.size
        found[key] = found.get(key, 0) + one.calls
    return found


def test_tensor_ranks_meet_at_the_ends_of_attention_and_feed_forward_layers():
    found = counted(in_passes(WORK, Plan(Topology(tensor=2)), *ENDS))
    states, hidden_of_labels, labels = 10 * 4 * 8, 7 * 4 * 8, 7 * 4
    assert found == {
        ("tensor", "all_reduce", states): 3 * (4 * 2 + 1),
        ("tensor", "all_reduce", hidden_of_labels): 3,
        ("tensor", "all_reduce", labels): 3,
        ("tensor", "all_reduce", 2 * labels): 3,
    }
    again = counted(in_passes(dataclasses.replace(WORK, recomputed=True), Plan(Topology(tensor=2)), *ENDS))
    assert again["tensor", "all_reduce", states] == 3 * (6 * 2 + 1)


def test_sequence_parallelism_replaces_sums_by_gathers_and_scatters_of_the_same_bytes():
    plain = costs.seconds_of(
        in_passes(WORK, Plan(Topology(tensor=2)), False, False), Topology(tensor=2), HARDWARE[DEFAULT]
    )
    plan = Plan(Topology(tensor=2), sequence=True)
    found = in_passes(WORK, plan, False, False)
    assert {one.op for one in found} == {"all_gather", "reduce_scatter"}
    assert costs.seconds_of(found, plan.topology, HARDWARE[DEFAULT]) == pytest.approx(plain)


def test_a_stage_of_a_pipeline_sends_states_forward_and_their_gradients_back():
    topology = Topology(pipeline=4, tensor=2)
    sends = [
        sum(one.calls for one in in_passes(WORK, Plan(topology), first, last) if one.op == "send")
        for first, last in ((True, False), (False, False), (False, True))
    ]
    assert sends == [3, 6, 3]
    cut = [one for one in in_passes(WORK, Plan(topology, sequence=True), False, False) if one.op == "send"]
    assert cut[0].size == 10 * 4 * 8 // 2
    assert bubble(topology, 3) == 3 / 6 and bubble(topology, 6, chunks=2) == 3 / 15 and bubble(Topology(data=4), 3) == 0


def test_gradients_are_added_up_once_in_a_step_or_for_each_pass_by_stage():
    topology = Topology(data=2, sharding=4)
    assert counted(in_update(WORK, Plan(Topology(data=2)))) == {
        ("data", "all_reduce", 400): 1,
        ("data", "all_reduce", 20): 1,
    }
    assert counted(in_update(WORK, Plan(topology))) == {
        ("data", "all_reduce", 100): 1,
        ("data", "all_reduce", 20): 1,
        ("sharding", "all_reduce", 20): 1,
        ("sharding", "reduce_scatter", 400): 1,
        ("sharding", "all_gather", 800): 1,
    }
    assert counted(in_passes(WORK, Plan(topology, stage=2), *ENDS)) == {("sharding", "reduce_scatter", 800): 3}
    whole = dataclasses.replace(WORK, held=100, outer=20)
    assert counted(in_passes(whole, Plan(topology, stage=3), *ENDS)) == {
        ("sharding", "all_gather", 40 * 8): 2 * 3 * 2,
        ("sharding", "reduce_scatter", 40 * 8): 3 * 2,
        ("sharding", "reduce_scatter", 20 * 8): 3,
    }
    assert ("sharding", "all_gather", 20 * 8) in counted(in_update(whole, Plan(topology, stage=3)))
    # Embeddings of 8 are fetched forward, a head of 12 backward too.
    apart = counted(in_passes(dataclasses.replace(whole, table=8, head=12), Plan(topology, stage=3), *ENDS))
    assert apart["sharding", "all_gather", 8 * 8] == 3 and apart["sharding", "all_gather", 12 * 8] == 3 * 2
    # One table of 16 is embeddings and head: it is fetched and summed for either, and 4 are left.
    tied = dataclasses.replace(whole, ends=16, table=16, head=16)
    found = counted(in_passes(tied, Plan(topology, stage=3), *ENDS))
    assert found["sharding", "all_gather", 16 * 8] == 3 + 3 * 2
    assert found["sharding", "reduce_scatter", 16 * 8] == 3 * 2 and found["sharding", "reduce_scatter", 4 * 8] == 3
    assert ("sharding", "all_gather", 4 * 8) in counted(in_update(tied, Plan(topology, stage=3)))
    assert not in_passes(WORK, Plan(topology), *ENDS)


def test_what_ranks_have_parts_of_or_in_common_is_added_up_once():
    work = dataclasses.replace(WORK, partial=6, ends=50)
    found = counted(in_update(work, Plan(Topology(tensor=2, pipeline=2))))
    assert found == {("tensor", "all_reduce", 6 * 8): 1, ("ends", "all_reduce", 200): 1}
    assert link_of("ends", Topology(pipeline=4, tensor=4), HARDWARE[DEFAULT]) == (2, HARDWARE[DEFAULT].between)


def test_tokens_go_to_experts_and_back_forward_and_backward():
    work = dataclasses.replace(WORK, mixtures=2, experts=6)
    found = counted(in_passes(work, Plan(Topology(data=4, expert=2)), *ENDS))
    assert found == {("expert", "all_to_all", 10 * 2 * 4 * 8): 3 * 2 * 4, ("expert", "all_gather", 6 * 2 * 8): 3 * 2}


def test_one_device_communicates_nothing():
    plan = Plan(Topology())
    assert not in_passes(WORK, plan, *ENDS) and not in_update(WORK, plan)
    found = costs.seconds(WORK, plan, HARDWARE[DEFAULT], *ENDS)
    assert found.communication == found.bubble == 0 < found.compute < found.total


def test_a_ring_of_n_sends_its_share_n_minus_1_times():
    device = dataclasses.replace(HARDWARE[DEFAULT], inside=Link(10.0, 1.0))
    reduced = costs.seconds_of([Traffic("data", "all_reduce", 1, 80)], Topology(data=4), device)
    assert reduced == 2 * 3 * (1 + 80 / 4 / 10)
    assert costs.seconds_of([Traffic("data", "all_gather", 2, 80)], Topology(data=4), device) == 2 * 3 * (1 + 2)


def test_groups_within_a_machine_are_on_its_connection():
    topology, device = Topology(data=2, tensor=8), HARDWARE[DEFAULT]
    assert link_of("tensor", topology, device) == (8, device.inside)
    assert link_of("data", topology, device) == (2, device.between)
    assert link_of("data", Topology(data=2, tensor=4), device) == (2, device.inside)
    assert link_of("tensor", Topology(data=4, tensor=3), device) == (3, device.between)


def test_the_connection_that_explains_measurements_is_found():
    link = Link(2e9, 3e-5)
    points = [
        (steps, size, steps * (link.latency + size / link.bandwidth)) for steps in (1, 6) for size in (1e3, 1e5, 1e7)
    ]
    found = fitted(points)
    assert found.latency == pytest.approx(link.latency) and found.bandwidth == pytest.approx(link.bandwidth)
    assert fitted([(1, 1e6, 1e-3), (1, 2e6, 1e-3)]) == Link(2e9, pytest.approx(1e-3))
    only = fitted([(1, 1e6, 1e-3), (1, 3e6, 9e-3)])
    assert only.latency == 0 and 3e8 < only.bandwidth < 1e9


def test_measured_connections_take_the_place_of_assumed_ones(tmp_path):
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"inside": {"bandwidth": 1e9, "latency": 2e-5}}))
    device = calibrated(find("a100-80"), file)
    assert device.inside == Link(1e9, 2e-5) and device.between == find("a100-80").between
    file.write_text(json.dumps({"rounds": 3}))
    with pytest.raises(ConfigError, match="no measurement; write it with llmctl bench comm"):
        calibrated(device, file)
    for link in ({"bandwidth": "fast", "latency": 0.0}, {"bandwidth": 0.0, "latency": 0.0}, {"latency": 0.0}):
        file.write_text(json.dumps({"inside": link}))
        with pytest.raises(FileError, match=r"measured.json is damaged: inside.*bandwidth.*write it with llmctl bench"):
            calibrated(device, file)
    with pytest.raises(ConfigError, match=r"--hardware b17: known are a100-40"):
        find("b17")

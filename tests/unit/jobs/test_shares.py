"""What a rank has of a model: together the ranks have each tensor once, or once each where it is not divided."""

from collections import Counter

import pytest

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.config.parallel import ParallelConfig
from llmctl.jobs.memory_estimate import MicroBatch, Training, estimate, peak
from llmctl.jobs.shares import Share, by_inputs, divided, in_flight, of_ranks, tensors_of
from llmctl.parallel.topology import Topology

FAMILIES = plugins.Families()
LLAMA = FAMILIES.load("llama").card


@pytest.mark.parametrize("name", FAMILIES.names)
def test_two_ranks_have_half_of_what_they_share_and_all_of_the_rest(name):
    card = FAMILIES.load(name).card
    dims = tiny_dims(card)
    dims = dims.replace(vocab=2 * int(dims.vocab))
    whole = {t.name: t for t in card.expand(dims)}
    for tensor in tensors_of(card, dims, Share(tensor=2)):
        times = 2 if divided(tensor) else 1
        assert tensor.size * times == whole[tensor.name].size, tensor.name
    assert any(by_inputs(t) for t in whole.values())


def test_more_ranks_than_kv_heads_have_one_each_and_the_vocabulary_is_cut_unevenly():
    dims = LLAMA.dims_of("llama2-7b", kv_heads=2, vocab=97)
    shapes = {t.name.removeprefix("llama."): t.shape for t in tensors_of(LLAMA, dims, Share(tensor=4))}
    assert shapes["layers.0.self_attn.k_proj.weight"] == (4096, 128)
    assert shapes["layers.0.self_attn.q_proj.weight"] == (4096, 1024)
    assert shapes["embed_tokens.weight"] == (25, 4096)


def test_stages_have_their_layers_and_the_ends_what_is_outside():
    dims = LLAMA.dims_of("llama2-7b", layers=5)
    names = Counter()
    for share in of_ranks(LLAMA, dims, ParallelConfig(pipeline=4), Topology(pipeline=4), 8):
        names.update(t.name for t in tensors_of(LLAMA, dims, share))
    assert names == Counter(t.name for t in LLAMA.expand(dims))
    tied = dims.replace(tied=True)
    ends = [
        tensors_of(LLAMA, tied, share)
        for share in of_ranks(LLAMA, tied, ParallelConfig(pipeline=2), Topology(pipeline=2), 8)
    ]
    assert all(any("embed_tokens" in t.name for t in rows) for rows in ends)


def test_layers_are_those_that_training_gives_to_stages_and_their_parts():
    dims = LLAMA.dims_of("llama2-7b", layers=8)
    given = of_ranks(LLAMA, dims, ParallelConfig(pipeline=2, stages=[3, 5]), Topology(pipeline=2), 8)
    assert [share.layers for share in given] == [(0, 1, 2), (3, 4, 5, 6, 7)]
    parts = of_ranks(LLAMA, dims, ParallelConfig(pipeline=3, chunks=2), Topology(pipeline=3), 8)
    assert [share.layers for share in parts] == [(0, 4, 5), (1, 2, 6), (3, 7)]


def test_a_stage_holds_the_passes_that_are_on_their_way_through_later_ones():
    assert [in_flight(4, 1, 8, stage) for stage in range(4)] == [4, 3, 2, 1]
    assert [in_flight(4, 1, 2, stage) for stage in range(4)] == [2, 2, 2, 1]
    assert in_flight(1, 1, 8, 0) == 1 and in_flight(4, 2, 8, 0) == 11 / 2


def test_memory_of_a_rank_by_part():
    dims, batch = LLAMA.dims_of("llama2-7b", layers=4), MicroBatch(64, 64, 64)
    training = Training(trained=LLAMA.count(dims))
    whole = estimate(LLAMA, dims, training, batch)
    assert estimate(LLAMA, dims, training, batch, Share(layers=range(4))) == whole

    halves = estimate(LLAMA, dims, training, batch, Share(tensor=2))
    assert halves["logits"] == whole["logits"] // 2
    assert whole["weights"] / 2 < halves["weights"] < whole["weights"] / 2 * 1.001
    sequence = estimate(LLAMA, dims, training, batch, Share(tensor=2, sequence=True))
    assert whole["activations"] / 2 < sequence["activations"] < halves["activations"] < whole["activations"]

    for stage, less in ((1, {"optimizer"}), (2, {"optimizer"}), (3, {"optimizer", "weights", "gradients"})):
        part = estimate(LLAMA, dims, training, batch, Share(sharding=4, stage=stage))
        assert {name for name in whole if part[name] < whole[name]} == less
        assert part["optimizer"] == -(-whole["optimizer"] // 4)
    assert estimate(LLAMA, dims, training, batch, Share(offload=True))["optimizer"] == 0
    stages = [estimate(LLAMA, dims, training, batch, share)
              for share in of_ranks(LLAMA, dims, ParallelConfig(pipeline=2), Topology(pipeline=2), 8)]  # fmt: skip
    assert [part["logits"] for part in stages] == [0, whole["logits"]]
    assert sum(part["weights"] for part in stages) == whole["weights"]
    assert max(map(peak, stages)) < peak(whole)


def test_slices_of_experts_are_of_those_that_a_rank_has():
    card = FAMILIES.load("mixtral").card
    dims = tiny_dims(card, {"experts": 8})
    training, batch = Training(trained=card.count(dims)), MicroBatch(64, 64, 64)
    experts = sum(t.size for t in card.expand(dims) if t.expert is not None)
    dense = card.count(dims) - experts
    for sharding, expert, slices in ((4, 1, 4), (8, 2, 4), (4, 4, 1), (2, 8, 1)):
        topology = Topology(data=8 // sharding, sharding=sharding, expert=expert)
        own = dense // sharding + experts // expert // slices
        for stage in (1, 3):
            keys = ParallelConfig(sharding=sharding, expert=expert, sharding_stage=stage)
            (share,) = of_ranks(card, dims, keys, topology, 8)
            part = estimate(card, dims, training, batch, share)
            assert abs(part["optimizer"] - 8 * own) <= 8 * 2, topology
            unit = max(sum(t.size for t in tensors_of(card, dims, share) if t.layer == layer) for layer in range(2))
            held = own + 2 * unit if stage == 3 else dense + experts // expert
            assert abs(part["weights"] - 4 * held) <= 4 * 2, topology


def test_half_types_keep_fp32_master_weights_and_sums_of_gradients():
    dims, batch = LLAMA.dims_of("llama2-7b", layers=2), MicroBatch(64, 64, 64)
    count = LLAMA.count(dims)
    half = estimate(LLAMA, dims, Training(trained=count, width=2, masters=True), batch)
    assert (half["weights"], half["gradients"], half["optimizer"]) == (2 * count, 6 * count, 12 * count)
    second = estimate(LLAMA, dims, Training(trained=count, width=2, masters=True), batch, Share(sharding=2, stage=2))
    assert second["gradients"] == 2 * count + 4 * count // 2

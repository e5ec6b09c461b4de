"""Memory before start: each part against its own count, and what every option changes."""

from dataclasses import replace

import pytest

from llmctl import plugins
from llmctl.jobs.memory_estimate import BASE_BITS, PROCESS, TOKEN, MicroBatch, Training, cache_bytes, estimate, peak
from llmctl.jobs.shares import Share

CARD = plugins.load("llama").card
DIMS = CARD.dims_of("llama2-7b", layers=3, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=96)
BATCH = MicroBatch(tokens=40, length=20, labels=17)
FULL = Training(trained=CARD.count(DIMS))


def parts(training=FULL, batch=BATCH, dims=DIMS, card=CARD):
    return estimate(card, dims, training, batch)


def test_weights_gradients_and_moments_are_counted_in_bytes():
    found, count = parts(), CARD.count(DIMS)
    assert (found["weights"], found["gradients"], found["optimizer"]) == (4 * count, 4 * count, 8 * count)
    assert found["logits"] == (17 * 96 + 32 * 96) * 4 and found["process"] == PROCESS + 96 * TOKEN
    assert parts(replace(FULL, logits=2))["logits"] - found["logits"] == 17 * 96 * 4
    early = found["activations"] + found["fragmentation"] + found["logits"]
    assert peak(found) == sum(found.values()) - min(early, found["gradients"])


def test_layers_keep_inputs_and_free_outputs_that_are_added_up():
    queries, keys = 32, 16
    attention = 32 + 32 + (queries + 2 * keys) + queries
    forward = 32 + 32 + 2 * 48 + 48
    assert parts()["activations"] == 4 * 40 * (3 * (attention + forward) + 2 * 32)
    assert parts()["fragmentation"] == pytest.approx(4 * 40 * 3 * ((queries + 2 * keys) / 3 + 32 + 32), abs=4)


def test_recomputation_keeps_inputs_of_layers_and_one_layer_whole():
    plain, attention, full = (
        parts(replace(FULL, recompute=what))["activations"] for what in ("none", "attention", "full")
    )
    assert full < attention < plain
    deep = DIMS.replace(layers=30)
    grown = [parts(replace(FULL, recompute="full"), dims=d)["activations"] for d in (DIMS, deep)]
    assert grown[1] - grown[0] == 27 * 40 * 32 * 4
    half = parts(replace(FULL, recompute="full", recompute_interval=2))["activations"]
    assert full < half < plain


def test_gradients_that_are_added_up_are_there_beside_logits():
    once, twice = parts(), parts(replace(FULL, accumulated=True))
    assert twice["accumulated gradients"] == once["gradients"] and not twice["gradients"]
    assert peak(twice) - peak(once) == once["gradients"] < once["activations"]
    half = replace(FULL, width=2, masters=True)
    once, twice = parts(half), parts(replace(half, accumulated=True))
    assert (twice["accumulated gradients"], twice["gradients"]) == (4 * CARD.count(DIMS), 2 * CARD.count(DIMS))
    assert once["gradients"] == 6 * CARD.count(DIMS)


def test_an_adapter_moves_little_and_a_quantised_base_is_small():
    targets = tuple(
        t.name.removesuffix(".weight") for t in CARD.expand(DIMS) if t.kind == "linear" and t.layer is not None
    )
    lora = Training(trained=1000, method="lora", rank=4, targets=targets)
    found = parts(lora)
    assert (found["adapters"], found["gradients"], found["optimizer"]) == (4000, 4000, 8000)
    assert found["activations"] > parts()["activations"]
    linears = sum(t.size for t in CARD.expand(DIMS) if t.kind == "linear" and t.layer is not None)
    packed = parts(replace(lora, base_bits=BASE_BITS["nf4"]))["weights"]
    assert packed == 4 * (CARD.count(DIMS) - linears) + int(linears * 4.5 / 8)


def test_scores_of_attention_count_where_they_are_held():
    plain = parts(replace(FULL, fused_attention=False))
    before_rope, scores = 64 * 2 / 3, 4 * 20
    assert plain["activations"] - parts()["activations"] == pytest.approx(3 * (before_rope + scores) * 40 * 4, abs=16)
    assert plain["fragmentation"] - parts()["fragmentation"] == pytest.approx(3 * scores * 40 * 4, abs=16)
    gpt = plugins.load("gpt3").card
    dims = gpt.dims_of(next(iter(gpt.sizes)), layers=2, hidden=32, heads=4, vocab=96)
    still = dims.replace(attention_dropout=0.0)
    assert parts(card=gpt, dims=dims)["activations"] > parts(card=gpt, dims=still)["activations"]


def test_of_experts_only_those_that_a_token_goes_to_count():
    card = plugins.load("mixtral").card
    few, many = (card.dims_of("tiny" if "tiny" in card.sizes else next(iter(card.sizes)), layers=2, hidden=32, heads=4,
                              kv_heads=2, head_dim=8, ffn=48, vocab=96, experts=count) for count in (4, 8))  # fmt: skip
    first, second = (parts(card=card, dims=dims) for dims in (few, many))
    assert first["activations"] == pytest.approx(second["activations"], rel=1e-6)
    assert second["weights"] > first["weights"]


def test_reference_and_average_are_whole_models():
    found = parts(replace(FULL, reference=True, average=True))
    assert found["reference model"] == found["averaged weights"] == 4 * CARD.count(DIMS)


def test_ranks_that_share_the_weights_have_slices_of_the_reference_and_of_the_average():
    training = replace(FULL, reference=True, average=True)
    whole, shared = (estimate(CARD, DIMS, training, BATCH, Share(sharding=ranks, stage=3)) for ranks in (1, 4))
    for part in ("reference model", "averaged weights"):
        assert shared[part] == whole[part] / 4


def test_keys_and_values_follow_the_key_value_heads():
    assert cache_bytes(DIMS, 1000) == 2 * 3 * 2 * 8 * 1000 * 4
    assert cache_bytes(DIMS.replace(layers=64), 1000) == 2 * 64 * 2 * 8 * 1000 * 2

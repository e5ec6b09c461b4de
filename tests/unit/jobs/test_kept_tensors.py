"""What layers keep for the backward pass, as the memory estimate counts it, against the counts of paddle's allocator."""

import gc
from dataclasses import replace

import numpy as np
import paddle
import pytest
from paddle.base import core

from llmctl import plugins
from llmctl.adapters import targets
from llmctl.adapters.attach import add_lora, quantize_base
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.build import build
from llmctl.jobs.memory_estimate import MicroBatch, Training, estimate
from llmctl.train.activation_checkpointing import apply
from llmctl.train.methods.loss import next_token_hidden, next_token_loss

ROWS, LENGTH, RANK, VOCAB = 8, 150, 4, 2000
STATISTIC = "Allocated", 0
LORA = {"method": "lora", "rank": RANK}
METHODS = {
    "full": {},
    "recomputed": {"recompute": "full"},
    "lora": LORA,
    "qlora": {**LORA, "base_bits": 8.5},
    "lora, recomputed": {**LORA, "recompute": "full"},
    "lora, dropout": {**LORA, "dropout": True},
    "dora": {**LORA, "magnitude": True},
}
CASES = [("llama", method) for method in METHODS]
CASES += [(family, method) for family in ("qwen3", "bloom", "gpt3", "mixtral") for method in ("full", "lora")]


def held():
    return core.host_memory_stat_current_value(*STATISTIC)


def trained(family, settings):
    """A tiny model whose weights are small beside what its layers keep, and how it is trained."""
    plugin = plugins.load(family)
    dims = tiny_dims(plugin.card, {"layers": 4, "hidden": 64, "vocab": VOCAB, "max_positions": 512})
    paddle.seed(0)
    model, paths = build(plugin, dims), ()
    if settings.get("method") == "lora":
        paths = tuple(targets.linears(plugin.card, dims))
        if "base_bits" in settings:
            quantize_base(model, paths, "int8")
        add_lora(model, paths, RANK, 1.0, 0.1 * settings.get("dropout", 0), settings.get("magnitude", False))
    apply(model, plugin.card, dims, settings.get("recompute", "none"), 1)
    return model.train(), plugin.card, dims, Training(plugin.card.count(dims), targets=paths, **settings)


def most_held(work):
    """Bytes of tensors that a call holds at most, beyond those that were there before."""
    gc.collect()
    before = held()
    core.host_memory_stat_reset_peak_value(*STATISTIC)
    work()
    return core.host_memory_stat_peak_value(*STATISTIC) - before


@pytest.mark.parametrize(("family", "method"), CASES)
def test_layers_keep_what_is_counted_until_logits_are_the_most(family, method):
    model, card, dims, training = trained(family, METHODS[method])
    rng = np.random.default_rng(0)
    ids = rng.integers(1, VOCAB, (ROWS, LENGTH))
    arrays = {"input_ids": ids, "labels": np.where(rng.random(ids.shape) < 0.5, ids, -100)}
    batch = MicroBatch(ids.size, LENGTH, int((arrays["labels"] >= 0).sum()))
    parts = estimate(card, dims, training, batch)
    gc.collect()
    before = held()
    core.host_memory_stat_reset_peak_value(*STATISTIC)
    hidden = next_token_hidden(model, arrays)
    kept = held() - before
    next_token_loss(model, arrays, hidden).total.backward()
    most = core.host_memory_stat_peak_value(*STATISTIC) - before
    assert parts["activations"] == pytest.approx(kept, rel=0.05)
    assert parts["activations"] + parts["logits"] == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize("method", ["recomputed", "lora, recomputed"])
def test_without_many_logits_a_recomputed_layer_and_its_gradients_are_the_most(method):
    model, card, dims, training = trained("llama", METHODS[method])
    ids = np.random.default_rng(0).integers(1, VOCAB, (ROWS, LENGTH))
    arrays = {"input_ids": ids, "labels": np.where(np.arange(ids.size).reshape(ids.shape) < 20, ids, -100)}
    batch = MicroBatch(ids.size, LENGTH, 20)
    parts = estimate(card, dims, training, batch)
    holes = estimate(card, dims, replace(training, recompute="none"), batch)["fragmentation"] / dims.layers
    most = most_held(lambda: next_token_loss(model, arrays).total.backward())
    assert parts["activations"] + parts["recomputed layer"] - holes == pytest.approx(most, rel=0.1)


def test_of_few_tokens_gradients_are_the_most():
    model, card, dims, training = trained("llama", {})
    ids = np.random.default_rng(0).integers(1, VOCAB, (1, 4))
    parts = estimate(card, dims, training, MicroBatch(4, 4, 4))
    most = most_held(lambda: next_token_loss(model, {"input_ids": ids, "labels": ids}).total.backward())
    assert parts["activations"] + parts["logits"] < parts["gradients"] == pytest.approx(most, rel=0.05)

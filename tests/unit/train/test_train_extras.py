"""Recomputation, averaged weights, stopping early, statistics: beside the loop and without changing its updates."""

import json
import math

import numpy as np
import paddle
import pytest
from kit.train_toys import ToyModel, collate, toy_rows

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.build import build
from llmctl.errors import CheckpointError
from llmctl.nn.recompute import recompute_layers
from llmctl.train import activation_checkpointing
from llmctl.train.callbacks import ema, metrics_log
from llmctl.train.callbacks.base import Callback, LoopSettings
from llmctl.train.callbacks.early_stopping import EarlyStopping
from llmctl.train.callbacks.ema import EMA
from llmctl.train.callbacks.tensor_stats import FILE, TensorStats
from llmctl.train.loop import Loop
from llmctl.train.methods.sft import SftTask
from llmctl.train.optim.adamw import AdamW
from llmctl.train.optim.master_weights import MasterWeights

ROWS = toy_rows(24)


def make(steps, callbacks, model, every=100, dev=(), evaluating=None):
    adamw = AdamW(dict(model.named_parameters()), max_norm=1.0)
    more = {"evaluating": evaluating} if evaluating else {}
    task = SftTask(ROWS, dev, collate, 4, 1, eval_batch_size=3, seed=5)
    return Loop(model, task, adamw, lambda step: 0.05, LoopSettings(steps, every, every, seed=5), callbacks, **more)


def weights(model):
    return {name: p.numpy().copy() for name, p in model.named_parameters()}


class Seen(Callback):
    def __init__(self, model):
        self.model, self.weights = model, []

    def on_step_end(self, update):
        self.weights.append(weights(self.model))


def test_averaged_weights_are_the_recursion_over_all_steps():
    model = ToyModel()
    average, seen, expected = EMA(MasterWeights(dict(model.named_parameters())), 0.7), Seen(model), weights(model)
    make(5, [average, seen], model).run()
    for step in seen.weights:
        expected = {name: 0.7 * value + 0.3 * step[name] for name, value in expected.items()}
    with average.applied():
        for name, value in weights(model).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-12)
    assert all(np.array_equal(value, seen.weights[-1][name]) for name, value in weights(model).items())


def test_averaging_changes_no_update_and_is_what_is_evaluated():
    plain, averaged = ToyModel(), ToyModel()
    average = EMA(MasterWeights(dict(averaged.named_parameters())), 0.5)
    make(4, [], plain).run()
    loop = make(4, [average], averaged, dev=ROWS[:6], evaluating=average.applied)
    loop.run()
    assert all(np.array_equal(value, weights(plain)[name]) for name, value in weights(averaged).items())
    inside = loop.evaluate()["eval_loss"]
    average.copy_to_model()
    assert (
        loop.task.evaluate(averaged)["eval_loss"] == inside != make(1, [], plain, dev=ROWS[:6]).evaluate()["eval_loss"]
    )


def test_an_average_is_stored_and_read_back(tmp_path):
    model = ToyModel()
    average = EMA(MasterWeights(dict(model.named_parameters())), 0.5)
    make(2, [average], model).run()
    ema.save(tmp_path, average.average)
    other = EMA(MasterWeights(dict(model.named_parameters())), 0.5)
    other.load(tmp_path)
    with average.applied():
        expected = weights(model)
    with other.applied():
        assert all(np.array_equal(value, expected[name]) for name, value in weights(model).items())
    with pytest.raises(CheckpointError, match="no averaged weights"):
        other.load(tmp_path / "absent")
    few = dict(list(average.average.items())[:1])
    ema.save(tmp_path, few)
    with pytest.raises(CheckpointError, match="are of other parameters"):
        other.load(tmp_path)
    (tmp_path / "average.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="delete the checkpoint to resume from the one before"):
        other.load(tmp_path)


class Falls(SftTask):
    """Evaluations as they are given."""

    def __init__(self, losses):
        super().__init__(ROWS, ROWS[:1], collate, 4, seed=5)
        self.losses = iter(losses)

    def evaluate(self, model):
        return {"eval_loss": next(self.losses)}


def test_training_stops_when_evaluations_no_longer_get_better(tmp_path):
    def run(losses, done=0):
        model = ToyModel()
        callbacks = [metrics_log.MetricsLogger(tmp_path, 1), EarlyStopping(tmp_path / "metrics.jsonl", "eval_loss", 2)]
        adamw = AdamW(dict(model.named_parameters()))
        return Loop(model, Falls(losses), adamw, lambda step: 0.05, LoopSettings(9, 1, 100, seed=5), callbacks).run(
            done
        )

    assert run([3.0, 2.0, 2.5, 2.1, 1.0]) == 4
    assert run([], done=4) == 4, "a continued run counts what was evaluated before"
    (tmp_path / "metrics.jsonl").unlink()
    assert run([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]) == 9
    (tmp_path / "metrics.jsonl").unlink()
    assert run([math.nan, 9.0, 8.0, math.nan, 7.0, 7.5, 7.1]) == 7, "a first loss that is no number is not the best"


def test_statistics_are_norms_of_what_the_update_uses(tmp_path):
    model = ToyModel()
    before = weights(model)
    make(2, [TensorStats(tmp_path, MasterWeights(dict(model.named_parameters())), 1)], model).run()
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for name, value in before.items():
        assert rows[0]["tensors"][name]["weight"] == pytest.approx(np.linalg.norm(value))
    assert np.sqrt(sum(row["gradient"] ** 2 for row in rows[0]["tensors"].values())) <= 1 + 1e-9


def test_a_continued_run_makes_the_statistics_of_later_steps_anew(tmp_path):
    def steps_after(steps, done):
        model = ToyModel()
        make(steps, [TensorStats(tmp_path, MasterWeights(dict(model.named_parameters())), 1)], model).run(done)
        return [json.loads(line)["step"] for line in (tmp_path / FILE).read_text().splitlines()]

    assert steps_after(3, 0) == [1, 2, 3]
    assert steps_after(4, 1) == [1, 2, 3, 4]
    assert steps_after(1, 0) == [1]


@pytest.mark.parametrize("family", ["gpt3", "mixtral", "chatglm2"])
@pytest.mark.parametrize(("what", "interval"), [("full", 1), ("attention", 1), ("full", 2)])
@pytest.mark.parametrize("frozen", [False, True])
def test_recomputation_changes_no_bit_of_the_gradients(family, what, interval, frozen):
    """Dropout (gpt3) is replayed, a balancing loss (mixtral) keeps its gradient, frozen embeddings cut nothing off."""
    plugin = plugins.load(family)
    dims = tiny_dims(plugin.card, {"balance": True} if family == "mixtral" else {})
    ids = paddle.to_tensor(np.random.default_rng(1).integers(3, dims.vocab, (2, 10)))
    results = []
    for again in ("none", what):
        paddle.seed(0)
        model = build(plugin, dims, "float64")
        for name, parameter in model.named_parameters():
            parameter.stop_gradient = frozen and "embed" in name
        activation_checkpointing.apply(model, plugin.card, dims, again, interval)
        model.train()
        paddle.seed(3)
        loss = (model.logits(model.hidden_states(ids)) ** 2).mean()
        sums = model.auxiliary_sums({})
        loss = loss + 10 * model.auxiliary_loss(sums) if sums else loss
        loss.backward()
        results.append({n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None})
    plain, repeated = results
    assert plain.keys() == repeated.keys() and len(plain) > 10
    assert all(np.array_equal(gradient, repeated[name]) for name, gradient in plain.items())


def test_a_recomputed_layer_keeps_its_input_alone():
    plugin = plugins.load("llama")
    dims = tiny_dims(plugin.card)
    model, calls = build(plugin, dims), []
    mlp = model.decoder.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda x: (calls.append(1), forward(x))[1]
    activation_checkpointing.apply(model, plugin.card, dims, "full", 1)
    model.train()
    model(paddle.to_tensor([[3, 4, 5]])).sum().backward()
    assert len(calls) == 2
    model.eval()
    model(paddle.to_tensor([[3, 4, 5]]))
    assert len(calls) == 3


def test_mixed_precision_is_that_of_the_first_pass(monkeypatch):
    """The backward pass runs outside of its context; on a CPU nothing but the tracer's state shows it."""
    tracer, seen = paddle.base.framework._dygraph_tracer(), []
    before = tracer._amp_level, tracer._amp_dtype

    class Watched(paddle.nn.Layer):
        def forward(self, x):
            seen.append((tracer._amp_level, tracer._amp_dtype, tracer._get_amp_op_list()))
            return x * 2

    model = paddle.nn.Sequential(Watched())
    recompute_layers(model, ["0"])
    with monkeypatch.context() as patch:
        patch.setattr(tracer, "_amp_level", paddle.base.core.AmpLevel.O1)
        patch.setattr(tracer, "_amp_dtype", "bfloat16")
        y = model(paddle.ones([2]))
    y.sum().backward()
    assert len(seen) == 2 and seen[0] == seen[1] and seen[0][:2] == (paddle.base.core.AmpLevel.O1, "bfloat16")
    assert (tracer._amp_level, tracer._amp_dtype) == before

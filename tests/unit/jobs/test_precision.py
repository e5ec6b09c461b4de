"""Half types: which of them is held, computed in and stored, FP32 master weights, loss scaling."""

import html
import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from kit.cut_runs import Crash, losses
from kit.loop_toys import Record, task, weights
from kit.train_toys import ToyModel

from llmctl import plugins, runtime
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.build import build
from llmctl.checkpoint.formats import safetensors
from llmctl.config import finetune, schema
from llmctl.errors import ConfigError
from llmctl.jobs import finetune as preflight
from llmctl.jobs import precision
from llmctl.nn import loss as nn_loss
from llmctl.train import trainer
from llmctl.train.callbacks.base import LoopSettings
from llmctl.train.callbacks.ema import EMA
from llmctl.train.loop import Loop, NonFiniteError
from llmctl.train.optim.adamw import AdamW
from llmctl.train.optim.loss_scaler import MIN_SCALE, LossScaler
from llmctl.train.optim.master_weights import MasterWeights

STARTER = Path(__file__).resolve().parents[3] / "plugins" / "llama" / "llmctl_llama" / "starter"


def train(**fields):
    return schema.build(finetune.FinetuneConfig, {"train": fields}).train


@pytest.mark.parametrize(
    ("device", "dtype", "fields", "types"),
    [
        ("cpu", "float32", {}, ("float32", "float32", "float32")),
        ("cpu", "float64", {}, ("float64", "float64", "float64")),
        ("cpu", "bfloat16", {}, ("float32", "float32", "bfloat16")),
        ("gpu", "float32", {}, ("float32", "float32", "float32")),
        ("gpu", "float16", {}, ("float16", "float16", "float16")),
        ("gpu", "float32", {"amp": "O1"}, ("float32", "bfloat16", "float32")),
        ("gpu", "float32", {"amp": "O2", "amp_dtype": "float16"}, ("float16", "float16", "float32")),
    ],
)
def test_types_follow_from_the_configuration_and_the_device(monkeypatch, device, dtype, fields, types):
    monkeypatch.setattr(runtime, "device", lambda: device)
    settings = train(**fields)
    precision.check(dtype, settings)
    found = precision.of(dtype, settings)
    assert (found.params, found.compute, found.checkpoints) == types
    assert found.needs_masters == any(t in precision.HALF for t in (found.params, found.checkpoints))
    assert found.needs_loss_scaling == (found.compute == "float16")
    assert bool(found.note) == any(t in precision.HALF for t in types)


@pytest.mark.parametrize(
    ("dtype", "fields", "message"),
    [
        ("float32", {"amp_dtype": "float16"}, "train.amp_dtype=float16 has no effect with train.amp=off"),
        ("bfloat16", {"amp": "O1"}, "train.amp=O1 is for models of model.dtype=float32, not bfloat16"),
        ("bfloat16", {"loss_scale": 8.0}, "train.loss_scale has an effect only where float16 is computed"),
        ("float32", {"amp": "O2", "loss_scale_every": 5}, "train.loss_scale_every has an effect only where float16"),
    ],
)
def test_fields_without_effect_are_refused(dtype, fields, message):
    with pytest.raises(ConfigError, match=message):
        precision.check(dtype, train(**fields))


def test_mixed_precision_without_a_gpu_is_refused_before_anything_is_loaded(tmp_path):
    settings = {"model": {"path": "plugin:starter/model"}, "data": {"train": "plugin:starter/data"},
                "train": {"amp": "O2"}, "output": {"dir": str(tmp_path / "out")}}  # fmt: skip
    with pytest.raises(ConfigError, match="train.amp=O2 needs a GPU.*or model.dtype=bfloat16"):
        preflight.check(schema.build(finetune.FinetuneConfig, settings), "llama")


def test_products_have_another_type_than_weights_in_o1_only(monkeypatch):
    asked = []
    monkeypatch.setattr(paddle.amp, "auto_cast", lambda **options: asked.append(options))
    precision.Precision("float32", "float16", "float32").autocast()
    precision.Precision("bfloat16", "bfloat16", "bfloat16").autocast()
    assert asked == [{"level": "O1", "dtype": "float16"}]


def parameter(values, dtype):
    made = paddle.create_parameter(values.shape, dtype, default_initializer=paddle.nn.initializer.Constant(0.0))
    # Paddle's Assign takes the bits of bfloat16 for whole numbers.
    made.set_value(paddle.to_tensor(values).astype(dtype))
    return made


def as_floats(tensor):
    return tensor.astype("float32").numpy()


def halves(steps, dtype, **options):
    """A half parameter and one of float32, moved by gradients that come in two parts; and the optimizer."""
    random = np.random.default_rng(0)
    params = {
        "half": parameter(random.normal(size=(5, 4)), dtype),
        "whole": parameter(random.normal(size=3), "float32"),
    }
    adamw = AdamW(params, 0.9, 0.95, weight_decay=0.1, max_norm=0.7, save_masters=True, **options)
    advance(adamw, range(1, steps + 1))
    return params, adamw


def advance(adamw, steps):
    for step in steps:
        for part in (0, 1):
            for name, p in adamw.parameters.items():
                random = np.random.default_rng([step, part, len(name)])
                grad = paddle.to_tensor(random.normal(size=p.shape)).astype(p.dtype)
                p.grad = grad if p.grad is None else p.grad + grad
            adamw.accumulate_grads()
        adamw.clip_grads(3.0)
        adamw.step(1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_parameters_are_the_float32_update_rounded(dtype):
    """Gradients of parts are added in float32; updates of a thousandth would vanish in weights of eight bits."""
    params, _ = halves(6, dtype)
    random = np.random.default_rng(0)
    start = as_floats(paddle.to_tensor(random.normal(size=(5, 4))).astype(dtype))
    twin = {"half": parameter(start, "float32"), "whole": parameter(random.normal(size=3), "float32")}
    adamw = AdamW(twin, 0.9, 0.95, weight_decay=0.1, max_norm=0.7)
    for step in range(1, 7):
        for name, p in twin.items():
            parts = [np.random.default_rng([step, part, len(name)]).normal(size=p.shape) for part in (0, 1)]
            kind = dtype if name == "half" else "float32"
            p.grad = sum(paddle.to_tensor(part).astype(kind).astype("float32") for part in parts)
        adamw.clip_grads(3.0)
        adamw.step(1e-3)
    np.testing.assert_array_equal(as_floats(params["half"]), as_floats(twin["half"].astype(dtype)))
    np.testing.assert_array_equal(params["whole"].numpy(), twin["whole"].numpy())
    assert np.abs(twin["half"].numpy() - start).max() > 1e-3


def test_a_state_with_float32_weights_continues_bit_for_bit():
    whole, _ = halves(5, "bfloat16")
    cut, adamw = halves(3, "bfloat16")
    stored = {name: paddle.to_tensor(as_floats(p)).astype("bfloat16") for name, p in cut.items()}
    other, fresh = halves(0, "bfloat16")
    for name, p in other.items():
        # A checkpoint holds all weights rounded.
        p.set_value(stored[name].astype(p.dtype))
    state = adamw.state()
    assert state["weight/half"].dtype == np.float32
    fresh.load(state)
    advance(fresh, (4, 5))
    for name, p in whole.items():
        np.testing.assert_array_equal(as_floats(other[name]), as_floats(p), err_msg=name)


def test_an_average_of_half_weights_is_kept_in_float32():
    p = parameter(np.ones(3), "bfloat16")
    masters = MasterWeights({"p": p})
    average = EMA(masters, 0.99)
    masters.tensors["p"].set_value(paddle.full([3], 1.5))
    masters.copy_to_model()
    average.on_step_end(None)
    with average.applied():
        np.testing.assert_allclose(as_floats(p), 1.0078125)
    assert float(as_floats(p)[0]) == 1.5
    average.on_step_end(None)
    average.copy_to_model()
    expected = 0.99 * (0.99 + 0.01 * 1.5) + 0.01 * 1.5
    np.testing.assert_allclose(average.average["p"].numpy(), expected, rtol=1e-6)


def test_float32_weights_are_averaged_rather_than_the_half_ones_that_they_are_rounded_to():
    params = {"p": parameter(np.ones(3), "bfloat16")}
    masters = MasterWeights(params)
    average = EMA(masters, 0.5)
    masters.tensors["p"].set_value(paddle.full([3], 1.001))
    masters.copy_to_model()
    average.on_step_end(None)
    assert as_floats(params["p"]).tolist() == [1.0] * 3, "bfloat16 cannot tell 1.001 from 1"
    np.testing.assert_allclose(average.average["p"].numpy(), 1.0005, rtol=1e-7)
    average.copy_to_model()
    assert as_floats(params["p"]).tolist() == [1.0] * 3


def test_the_factor_of_losses_follows_the_published_rule():
    """Halve at an overflow, double after so many good updates in a row."""
    random = np.random.default_rng(4)
    events = random.random(200) < 0.2
    scale, factor, row, skipped = LossScaler(16.0, 3), 16.0, 0, 0
    for bad in events:
        if bad:
            assert scale.overflowed()
            factor, row, skipped = factor / 2, 0, skipped + 1
        else:
            scale.succeeded()
            row += 1
            if row == 3:
                factor, row = factor * 2, 0
        assert (scale.scale, scale.skipped) == (factor, skipped)
    copy = LossScaler(1.0, 3)
    copy.load(scale.state())
    for _ in range(3):
        scale.succeeded()
        copy.succeeded()
    assert copy.scale == scale.scale != 1.0


def scaled(factor, every=2000, limit=np.inf):
    """Six updates of the toy whose gradients overflow where losses are multiplied by more than the limit."""
    model, record = ToyModel(), Record()
    adamw = AdamW(dict(model.named_parameters()), max_norm=1.0, scaler=LossScaler(factor, every) if factor else None)
    inner = task(accumulation=2)

    class Overflowing:
        steps_per_epoch, micro_batches, hidden = inner.steps_per_epoch, inner.micro_batches, inner.hidden
        reported = ()

        def loss(self, model, batch, hidden):
            found = inner.loss(model, batch, hidden)
            found.total.register_hook(lambda grad: grad * float("inf") if float(grad) > limit else grad)
            return found

        def evaluate(self, model):
            return {}

    Loop(model, Overflowing(), adamw, lambda step: 0.05, LoopSettings(6, 99, 99, seed=5), [record]).run()
    return weights(model), record, adamw


def test_a_factor_of_losses_changes_nothing_where_nothing_overflows():
    plain, scaled_weights = scaled(None)[0], scaled(64.0, every=2)[0]
    for name, value in plain.items():
        np.testing.assert_array_equal(scaled_weights[name], value)


def test_updates_that_overflow_are_left_out_and_counted():
    found, record, adamw = scaled(64.0, limit=20)
    assert record.norms[:2] == [0.0, 0.0] and all(record.norms[2:])
    assert (adamw.scaler.skipped, adamw.scaler.scale) == (2, 16.0)
    assert adamw.state()["loss_scale"].tolist() == [16.0, 4.0, 2.0]
    start = weights(ToyModel())
    assert all(np.abs(found[name] - start[name]).max() > 0 for name in start)


def test_gradients_that_no_factor_makes_finite_end_the_run():
    with pytest.raises(NonFiniteError, match="gradient norm"):
        scaled(MIN_SCALE, limit=0)


def test_losses_are_computed_inside_the_context_and_gradients_outside():
    inside, seen = [], []

    @contextmanager
    def computing():
        inside.append(True)
        yield
        inside.pop()

    inner = task()

    def loss(model, batch, hidden):
        found = inner.loss(model, batch, hidden)
        seen.append(bool(inside))
        found.total.register_hook(lambda grad: seen.append(bool(inside)))
        return found

    watched = SimpleNamespace(
        steps_per_epoch=inner.steps_per_epoch, micro_batches=inner.micro_batches, hidden=inner.hidden, loss=loss, reported=(),
        evaluate=lambda model: {"inside": seen.append(bool(inside))},
    )  # fmt: skip
    model = ToyModel()
    adamw = AdamW(dict(model.named_parameters()))
    Loop(model, watched, adamw, lambda step: 0.1, LoopSettings(1, 1, 9), autocast=computing).run()
    assert seen == [True, False, True]


def test_losses_of_half_logits_are_summed_in_float32():
    logits = paddle.to_tensor(np.random.default_rng(0).normal(size=(9000, 4)) * 8).astype("float16")
    labels = paddle.zeros([9000], "int64")
    wide = logits.astype("float32")
    assert float(nn_loss.token_loss(logits, labels)) == float(nn_loss.token_loss(wide, labels)) > 65504
    assert nn_loss.token_log_probs(logits, labels).dtype == paddle.float32


def test_a_model_is_built_and_held_in_a_half_type():
    plugin = plugins.load("llama")
    model = build(plugin, tiny_dims(plugin.card), "bfloat16")
    assert {str(p.dtype) for p in model.parameters()} == {"paddle.bfloat16"}


def job(output, resume=False, dtype="bfloat16", **method):
    settings = {
        "model": {"path": "plugin:starter/model", "dtype": dtype},
        "method": method or {"name": "full"},
        "data": {"train": str(STARTER / "data" / "dev.jsonl"), "src_length": 64, "max_length": 128},
        "train": {"max_steps": 4, "batch_size": 2, "save_every": 2, "log_every": 1, "learning_rate": 1e-3},
        "output": {"dir": str(output), "samples": 0, "resume": resume},
    }
    return preflight.check(schema.build(finetune.FinetuneConfig, settings), "llama")


@pytest.mark.parametrize(
    "method",
    [{"name": "full"}, {"name": "lora", "rank": 2}, {"name": "lora", "rank": 2, "pissa": True, "targets": ["v_proj"]}],
)
def test_on_a_cpu_half_types_are_stored_and_the_run_says_so_and_continues_bit_for_bit(tmp_path, capsys, method):
    trainer.run(job(tmp_path / "plain", dtype="float32", **method))
    capsys.readouterr()
    trainer.run(job(tmp_path / "whole", **method))
    assert "a CPU has no kernels for half types, so float32 is computed" in capsys.readouterr().out
    assert losses(tmp_path / "whole") == losses(tmp_path / "plain")
    info = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert info["precision"]["stored"] == "bfloat16" and info["precision"]["computed"] == "float32"
    assert html.escape(info["precision"]["note"]) in (tmp_path / "whole" / "report.html").read_text()
    file = "model.safetensors" if method["name"] == "full" else "adapter_model.safetensors"
    header = safetensors.read_header(tmp_path / "whole" / "checkpoints" / "step-000002" / file)
    assert {tensor.dtype for tensor in header.values()} == {"bfloat16"}
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.run(job(tmp_path / "cut", **method), [Crash()])
    trainer.run(job(tmp_path / "cut", resume=True, **method))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    model = f"model/{file}"
    assert (tmp_path / "cut" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()

"""Preference optimization: references, averages over pairs, whole runs, and that they continue bit for bit."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import pytest

from llmctl.card.tiny import tiny_dims
from llmctl.config import schema
from llmctl.config.dpo import DpoConfig
from llmctl.data.preference import rows as pair_rows
from llmctl.data.preference.encoding import Pair
from llmctl.errors import ConfigError, DataError
from llmctl.jobs import dpo as preflight_dpo
from llmctl.plugins import load as load_plugin
from llmctl.testing.tiny import random_model
from llmctl.train import trainer
from llmctl.train.callbacks.base import Callback
from llmctl.train.loop import NonFiniteError
from llmctl.train.methods import dpo
from llmctl.train.methods.dpo_loss import LOSSES
from llmctl.train.methods.dpo_reference import ReferenceFree, ReferenceModel
from llmctl.train.methods.dpo_task import DpoTask, answer_log_probs
from llmctl.train.trainable import base as subject

STARTER = Path(__file__).resolve().parents[4] / "plugins" / "llama" / "llmctl_llama" / "starter"
METHODS = {
    "full": {},
    "lora": {"name": "lora", "targets": ["q_proj", "down_proj"]},
    "pissa": {"name": "lora", "pissa": True, "rank": 4, "targets": ["q_proj", "v_proj"]},
    "dora": {"name": "lora", "dora": True, "rank": 4, "targets": ["v_proj"]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve questions of the starter's task; the rejected answer is another question's."""
    rows = [json.loads(line) for line in (STARTER / "data" / "dev.jsonl").read_text().splitlines()[:12]]
    lines = [
        {"src": [row["src"]], "tgt": [], "response": [other["tgt"], row["tgt"]], "sort": [0, 1]}
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    folder = tmp_path_factory.mktemp("pairs")
    for name, part in (("train", lines), ("dev", lines[:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    return folder


def job(data, output, method="full", resume=False, model=None, more=None, **settings):
    sections = {
        "model": {"path": "plugin:starter/model", **(model or {})},
        "method": METHODS[method],
        "data": {"train": str(data), "max_prompt_length": 64, "max_length": 160, **(more or {})},
        "dpo": settings,
        "train": {"max_steps": 4, "batch_size": 2, "grad_accumulation": 2, "save_every": 2, "eval_every": 4,
                  "log_every": 1, "learning_rate": 1e-4 if method == "full" else 2e-3},
        "output": {"dir": str(output), "samples": 1, "resume": resume},
    }  # fmt: skip
    return preflight_dpo.check(schema.build(DpoConfig, sections), "llama")


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


MEASURED = {"tokens_per_second", "seconds", "peak_memory"}


def computed(output):
    """The lines of a run without what is measured of the machine."""
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in metrics(output)]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Finished runs by method, each made once."""
    made = {}

    def get(method, **settings):
        key = (method, *settings)
        if key not in made:
            output = tmp_path_factory.mktemp("runs") / "run"
            made[key] = output, trainer.run(job(data, output, method, **settings))
        return made[key]

    return get


@pytest.mark.parametrize("method", METHODS)
def test_a_run_begins_at_its_reference_and_learns_to_prefer(runs, method):
    output, info = runs(method)
    first, *_, last = metrics(output)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5) and first["rewards/margins"] == pytest.approx(
        0, abs=1e-4
    )
    assert last["eval_loss"] < math.log(2) and last["rewards/margins"] > 0
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"}
    names |= {"logps/chosen", "logps/rejected"}
    assert names <= first.keys() and {*names, "eval_loss"} == info["after"]["metrics"].keys()
    margin = last["rewards/chosen"] - last["rewards/rejected"]
    assert last["rewards/margins"] == pytest.approx(margin, rel=1e-5)
    assert info["after"]["samples"][0].keys() == {"prompt", "expected", "answer"}


class Crash(Callback):
    def on_save(self, step):
        raise RuntimeError("power cut")


@pytest.mark.parametrize(
    ("method", "settings"), [("full", {}), ("pissa", {}), ("full", {"precompute_reference": True})]
)
def test_a_run_that_is_cut_off_continues_bit_for_bit(data, runs, tmp_path, method, settings):
    whole, _ = runs(method, **settings)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.run(job(data, tmp_path / "run", method, **settings), [Crash()])
    trainer.run(job(data, tmp_path / "run", method, resume=True, **settings))
    assert computed(tmp_path / "run") == computed(whole)
    for path in (whole / "model").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "run" / "model" / path.name).read_bytes()


def test_log_probabilities_computed_before_training_give_the_same_run(data, runs, tmp_path, capsys):
    live, before = metrics(runs("full")[0]), metrics(runs("full", precompute_reference=True)[0])
    for row, other in zip(live, before, strict=True):
        # Before the first update rewards are 0 but for rounding, so which is larger means nothing.
        skipped = MEASURED | ({"rewards/accuracies"} if row["step"] == 1 else set())
        for name in row.keys() - skipped:
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    stored = runs("full", precompute_reference=True)[0] / "reference.npz"
    with np.load(stored) as tables:
        assert tables["train"].shape == (12, 2) and tables["dev"].shape == (4, 2)


def log_probs_of(reference, arrays, training):
    return reference.log_probs(arrays, training, reference.hidden(arrays, training))


def test_stored_log_probabilities_of_other_pairs_are_computed_anew(data, runs, tmp_path, capsys):
    stored = (runs("full", precompute_reference=True)[0] / "reference.npz").read_bytes()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "reference.npz").write_bytes(stored)
    for more, computed in (({}, 0), ({"max_prompt_length": 8, "max_length": 20}, 1)):
        one = job(data, tmp_path / "run", resume=True, more=more, precompute_reference=True)
        task = dpo.prepare(one).task
        task.reference = dpo.reference(one, subject.load(one, None), task)
        capsys.readouterr()
        log_probs_of(task.reference, task.micro_batches(1)[0].arrays, True)
        assert capsys.readouterr().out.count("reference: ") == computed


@pytest.mark.parametrize("content", [b"", b"neither", b"PK\x03\x04 cut off"])
def test_damaged_log_probabilities_are_computed_anew(data, tmp_path, capsys, content):
    one = job(data, tmp_path / "run", precompute_reference=True)
    one.output.mkdir()
    (one.output / "reference.npz").write_bytes(content)
    task = dpo.prepare(one).task
    task.reference = dpo.reference(one, subject.load(one, None), task)
    log_probs_of(task.reference, task.micro_batches(1)[0].arrays, True)
    assert "reference: 16 pairs" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_stays_while_the_model_moves(data, tmp_path, method):
    one = job(data, tmp_path / "run", method, model={"dtype": "float64"})
    task, trained = dpo.prepare(one).task, subject.load(one, None)
    arrays = task.micro_batches(1)[0].arrays
    reference = ReferenceModel(trained.reference())
    base = subject.load(job(data, tmp_path / "base", "full", model={"dtype": "float64"}), None).model
    expected = answer_log_probs(base, arrays).numpy()
    np.testing.assert_allclose(log_probs_of(reference, arrays, False).numpy(), expected, atol=1e-8)
    with paddle.no_grad():
        for parameter in trained.model.parameters():
            if not parameter.stop_gradient:
                parameter.set_value(parameter + 0.05)
    moved = answer_log_probs(trained.model, arrays)
    np.testing.assert_allclose(log_probs_of(reference, arrays, False).numpy(), expected, atol=1e-8)
    np.testing.assert_array_equal(answer_log_probs(trained.model, arrays).numpy(), moved.numpy())
    assert np.abs(moved.numpy() - expected).max() > 0.1


@pytest.fixture(scope="module")
def model():
    plugin = load_plugin("llama")
    return random_model(plugin, tiny_dims(plugin.card))


def pairs():
    rng = np.random.default_rng(2)
    sizes = [(5, 4, 7), (3, 9, 2), (8, 1, 3), (4, 6, 6), (6, 2, 5), (2, 3, 3)]
    return [Pair(*(rng.integers(3, 90, n).tolist() for n in row), f"t:{i}") for i, row in enumerate(sizes)]


def task_of(batch_size, accumulation=1, loss="sigmoid", how="none", dev=()):
    rows = pair_rows.rows_of(pairs(), how, 40)
    collate = partial(pair_rows.collate, pad_id=0)
    task = DpoTask(
        rows, dev, collate, partial(LOSSES[loss], beta=0.2), 0.2, batch_size, accumulation, eval_batch_size=2
    )
    task.reference = ReferenceFree()
    return task


def gradients(model, task):
    model.clear_gradients()
    losses = [task.loss(model, batch, task.hidden(model, batch)) for batch in task.micro_batches(1)]
    for loss in losses:
        loss.total.backward()
    items = sum(loss.items for loss in losses)
    sums = [sum(float(loss.sums[name]) for loss in losses) for name in losses[0].sums]
    values = np.array([sum(float(loss.total) for loss in losses), *sums])
    return values / items, {name: p.grad.numpy() / items for name, p in model.named_parameters()}


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "kto_pair"])
def test_accumulation_and_packing_equal_one_big_batch(model, loss):
    whole, expected = gradients(model, task_of(6, loss=loss))
    for task in (task_of(2, 3, loss), task_of(1, 6, loss), task_of(6, loss=loss, how="first-come")):
        means, found = gradients(model, task)
        np.testing.assert_allclose(means, whole, rtol=1e-12)
        for name, gradient in found.items():
            np.testing.assert_allclose(gradient, expected[name], atol=1e-11 * max(1, np.abs(expected[name]).max()))


def test_without_a_reference_a_reward_is_beta_times_the_log_probability(model):
    found = task_of(6, dev=pair_rows.rows_of(pairs(), "none", 40)).evaluate(model)
    for name in ("chosen", "rejected"):
        assert found[f"rewards/{name}"] == pytest.approx(0.2 * found[f"logps/{name}"], rel=1e-12)


def test_an_evaluation_is_the_mean_over_pairs(model):
    rows = pair_rows.rows_of(pairs(), "first-come", 30)
    found = task_of(6, dev=rows).evaluate(model)
    whole, _ = gradients(model, task_of(6))
    np.testing.assert_allclose(list(found.values()), whole, rtol=1e-12)


def test_a_step_that_is_not_finite_stops_and_names_its_pairs(data, tmp_path):
    one = job(data, tmp_path / "run")
    one.config.train.learning_rate = 1e30
    with pytest.raises(NonFiniteError, match=r"train\.jsonl:\d+"):
        trainer.run(one)
    assert json.loads((tmp_path / "run" / "nan_step.json").read_text())["step"] == 2


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"more": {"max_prompt_length": 159}}, "leaves no room for two answers in data.max_length=160"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "dpo.label_smoothing has no effect with dpo.loss=ipo"),
        ({"reference_free": True, "precompute_reference": True}, "has no effect with dpo.reference_free=true"),
        ({"loss": "sigmoit"}, "did you mean sigmoid?"),
        ({"beta": 0}, "dpo.beta=0.0: must be above 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(data, tmp_path, sections, part):
    with pytest.raises(ConfigError) as caught:
        job(data, tmp_path / "run", **sections)
    assert part in str(caught.value)


@pytest.mark.parametrize("name", ["dropout", "neftune_alpha"])
def test_noise_is_refused(data, tmp_path, monkeypatch, name):
    monkeypatch.setitem(METHODS, "lora", {"name": "lora", name: 0.1})
    with pytest.raises(ConfigError, match=f"method.{name} has no place in preference optimization"):
        job(data, tmp_path / "run", "lora")


def test_pairs_of_which_nothing_is_left_are_an_error(data, tmp_path):
    with pytest.raises(DataError, match="none of the 12 train pairs"):
        dpo.prepare(job(data, tmp_path / "run", more={"max_prompt_length": 1, "max_length": 3}))

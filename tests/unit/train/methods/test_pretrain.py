"""Pretraining: new models and old ones, the samples of each step, evaluation, and continuing at the exact sample."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from kit.corpora import write

import llmctl
from llmctl import plugins
from llmctl.checkpoint import open_folder
from llmctl.config import schema
from llmctl.config.pretrain import PretrainConfig
from llmctl.data.corpus.samples import SampleSpec, open_split
from llmctl.data.sft.encoding import IGNORE_INDEX
from llmctl.errors import ConfigError, DataError
from llmctl.jobs import pretrain as preflight_pretrain
from llmctl.train import trainer
from llmctl.train.callbacks.base import Callback
from llmctl.train.methods import pretrain
from llmctl.train.methods.loss import next_token_loss
from llmctl.train.methods.pretrain import collate

STARTER = Path(__file__).resolve().parents[4] / "plugins" / "llama" / "llmctl_llama" / "starter" / "model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of documents in which each id is the one before plus a step of the document, so that it can be learned."""
    folder = tmp_path_factory.mktemp("pretrain")
    random = np.random.default_rng(0)
    documents = [(start + step * np.arange(length)) % 60 + 4 for start, step, length in
                 zip(random.integers(0, 60, 300), random.integers(1, 3, 300), random.integers(5, 40, 300), strict=True)]  # fmt: skip
    write(folder / "corpus", documents)
    return folder


def job(folder, output, family="llama", **changes):
    sections = {
        "parallel": {},
        "model": {"size": "tiny", "tokenizer": str(STARTER)},
        "data": {"corpora": [str(folder / "corpus")], "split": "8,1,1", "seq_length": 32},
        "train": {
            "max_steps": 8, "batch_size": 4, "grad_accumulation": 2, "eval_every": 4, "eval_iters": 2, "test_iters": 3,
            "save_every": 4, "log_every": 1, "learning_rate": 0.01, "min_learning_rate": 0.001, "warmup_steps": 2,
            "decay_steps": 6, "eval_batch_size": 5,
        },
        "output": {"dir": str(output), "samples": 1},
    }  # fmt: skip
    for key, value in changes.items():
        section, _, name = key.partition("__")
        sections[section][name] = value
    return preflight_pretrain.check(schema.build(PretrainConfig, sections), family)


@pytest.fixture(scope="module")
def whole(folder):
    """A run that nothing disturbs, and its output folder."""
    return trainer.run(job(folder, folder / "whole")), folder / "whole"


MEASURED = ("seconds", "tokens_per_s", "peak_memory")
"""What differs from run to run."""


def logged(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(MEASURED)} for row in rows]


def tensors(folder):
    return {name: np.asarray(value) for name, value in _weights(folder).items()}


def _weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_it_learns_and_leaves_a_model_that_loads(whole):
    info, output = whole
    assert info["after"]["metrics"]["eval_loss"] < info["before"]["metrics"]["eval_loss"] - 0.5
    assert set(info["test"]) == {"eval_loss", "perplexity", "accuracy"}
    assert json.loads((output / "run.json").read_text())["test"] == info["test"]
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["vocab_size"] % 128 == 0
    assert open_folder(output / "model").tensors["model.embed_tokens.weight"].shape[0] == config["vocab_size"]


def test_the_learning_rate_ends_at_its_minimum_after_decay_steps(whole):
    rates = [row["lr"] for row in logged(whole[1]) if "lr" in row]
    course = [0.5 * (1 + math.cos(math.pi * done / 4)) for done in range(4)]
    expected = [0.005, 0.01, *(0.001 + 0.009 * height for height in course), 0.001, 0.001]
    assert rates == pytest.approx(expected)


def test_metrics_are_those_of_the_samples_one_by_one(whole, folder):
    """Against float64 cross entropies in numpy, from the saved model's logits."""
    info, output = whole
    model, _ = llmctl.load(output / "model")
    samples = open_split(SampleSpec([str(folder / "corpus")], "8,1,1", 32), "test", 15)
    losses = []
    for i in range(15):
        logits = model(paddle.to_tensor(samples[i].input_ids[None])).numpy()[0].astype(np.float64)
        shifted = logits - logits.max(-1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        losses += (-log_probability[np.arange(32), samples[i].labels]).tolist()
    assert info["test"]["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


class Killed(Exception):
    """The end of a process, as far as a test in the same process can have it."""


class KillAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, update):
        if update.step == self.step:
            raise Killed


def test_a_killed_run_continues_at_the_exact_sample(whole, folder):
    output = folder / "killed"
    with pytest.raises(Killed):
        trainer.run(job(folder, output), [KillAt(6)])
    info = trainer.run(job(folder, output, output__resume=True))
    assert logged(output) == logged(whole[1])
    assert info["test"] == whole[0]["test"] and info["after"] == whole[0]["after"]
    expected = tensors(whole[1] / "model")
    for name, value in tensors(output / "model").items():
        assert np.array_equal(value, expected[name]), name


def test_a_run_is_not_continued_on_other_samples(whole, folder):
    shutil.copytree(whole[1], folder / "changed")
    with pytest.raises(ConfigError, match="data.seed: 42 when the run began, 7 now"):
        trainer.run(job(folder, folder / "changed", output__resume=True, data__seed=7))


def test_the_seed_decides_the_first_weights_and_init_std_their_size(folder):
    made = {}
    for seed in (1, 1, 2):
        subject = pretrain.load(job(folder, folder / "none", train__seed=seed,
                                    model__changes=["initializer_range=0.05"]), None)  # fmt: skip
        made.setdefault(seed, []).append({name: value.numpy() for name, value in subject.model.state_dict().items()})
    first, again, other = *made[1], made[2][0]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if "norm" not in name]
    assert not any(np.array_equal(first[name], other[name]) for name in drawn)
    spread = np.concatenate([first[name].ravel() for name in drawn])
    assert spread.std() == pytest.approx(0.05, rel=0.02) and abs(spread.mean()) < 0.001


def test_training_goes_on_from_a_checkpoint(whole, folder):
    """The first loss of the second run is the last model's on the same samples, and the vocabulary stays."""
    again = job(folder, folder / "further", model__size="", model__tokenizer="", model__path=str(whole[1] / "model"),
                train__max_steps=1, train__eval_every=1, data__seed=9)  # fmt: skip
    info = trainer.run(again)
    model, _ = llmctl.load(whole[1] / "model")
    samples = pretrain.prepare(again).task.valid
    loss, count, _ = next_token_loss(model, collate([samples[i] for i in range(len(samples))], False))
    assert info["before"]["metrics"]["eval_loss"] == pytest.approx(float(loss) / count, rel=1e-5)
    first = logged(folder / "further")[0]["loss"]
    assert first < logged(whole[1])[0]["loss"] - 0.5


def test_accumulation_equals_one_big_batch(whole, folder):
    info = trainer.run(job(folder, folder / "big", train__batch_size=8, train__grad_accumulation=1))
    assert [row["loss"] for row in logged(folder / "big") if "loss" in row] == pytest.approx(
        [row["loss"] for row in logged(whole[1]) if "loss" in row], rel=1e-4
    )
    assert info["steps"] == 8


def test_separate_documents_are_trained_as_if_alone(folder):
    """The sum over a sample is the sum over its documents, each fed by itself."""
    made = job(folder, folder / "none", model__dtype="float64", data__separate_documents=True)
    model = pretrain.load(made, None).model
    samples = pretrain.prepare(made).task.train
    sample = next(samples[i] for i in range(len(samples)) if len(samples[i].document_starts) > 2)
    together, count, _ = next_token_loss(model, collate([sample], True))
    alone, labels = 0.0, 0
    for start, stop in zip(sample.document_starts, [*sample.document_starts[1:], 32], strict=True):
        part = {"input_ids": sample.input_ids[None, start:stop], "labels": sample.labels[None, start:stop]}
        if (part["labels"] != IGNORE_INDEX).any():
            loss, some, _ = next_token_loss(model, part)
            alone, labels = alone + float(loss), labels + some
    assert count == labels == 32 - sum(sample.labels == IGNORE_INDEX)
    assert float(together) == pytest.approx(alone, rel=1e-12)
    joined, *_ = next_token_loss(model, collate([sample], False))
    assert float(joined) != pytest.approx(alone, rel=1e-6)


def test_documents_of_one_token_leave_nothing_to_learn_apart(folder):
    """A forward pass without a label adds nothing; an update or evaluation without any is refused."""
    write(folder / "mixed", [[7]] * 400 + [list(range(5, 25))] * 4)
    asked = dict(data__corpora=[str(folder / "mixed")], data__separate_documents=True, data__split="1", data__seq_length=2,
                 train__batch_size=1, train__max_steps=1)  # fmt: skip
    made = job(folder, folder / "none", **asked, train__grad_accumulation=404)
    task, model = pretrain.prepare(made).task, pretrain.load(made, None).model
    found = {}
    for batch in task.micro_batches(1):
        found.setdefault(bool((batch.arrays["labels"] != IGNORE_INDEX).any()), batch)
    loss, count, _ = next_token_loss(model, found[False].arrays)
    assert float(loss) == 0 == count
    loss.backward()
    assert not any(p.grad is not None and float(p.grad.abs().max()) for p in model.parameters())
    write(folder / "ones", [[7]] * 400)
    with pytest.raises(DataError, match="ones#0 to .*ones#7 have no label"):
        pretrain.prepare(job(folder, folder / "none", **{**asked, "data__corpora": [str(folder / "ones")]},
                             train__grad_accumulation=8)).task.micro_batches(1)  # fmt: skip
    with pytest.raises(DataError, match="have no label"):
        task.measure(model, open_split(SampleSpec([str(folder / "ones")], "1", 8, separate=True), "train", 6))


def test_samples_are_divided_among_devices_by_tokens(folder):
    shared = {"parallel__tensor": 4, "parallel__sequence": True}
    job(folder, folder / "none", **shared)
    with pytest.raises(
        ConfigError, match="parallel.sequence divides data.seq_length=30 among parallel.tensor=4 devices"
    ):
        job(folder, folder / "none", **shared, data__seq_length=30)


def test_without_a_valid_split_there_is_no_evaluation(folder):
    info = trainer.run(job(folder, folder / "blind", data__split="1", train__max_steps=1, train__eval_every=1))
    assert info["before"]["metrics"] == {} and "test" not in info and info["after"]["samples"] == []


def test_vocabularies_are_rounded_up():
    assert [preflight_pretrain.padded_vocab(ids, 128) for ids in (1, 128, 129, 32000)] == [128, 128, 256, 32000]


def test_a_new_model_of_a_config_file_keeps_a_larger_vocabulary(folder):
    config = plugins.load("llama").card.config_from_dims(job(folder, folder / "none").model.dims)
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    made = job(folder, folder / "none", "auto", model__size="", model__config=str(folder / "config.json"))
    assert made.model.dims.vocab == 1024 and made.model.plugin.card.name == "llama"


def test_a_vocabulary_that_is_asked_for_is_made(folder):
    assert job(folder, folder / "none", model__changes=["vocab_size=1000"]).model.dims.vocab == 1024

"""Runs of several processes: the same model, losses and checkpoints as one process, for every method."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from kit.short_runs import STARTER, checked, write_data
from safetensors.numpy import load_file

from llmctl.parallel.launch import free_ports
from llmctl.parallel.ranks import ALONE
from llmctl.testing.ranks import run_ranks
from llmctl.train import trainer
from llmctl.train.callbacks.base import Callback
from llmctl.train.console import Console

TRAIN = {
    "max_steps": 3,
    "batch_size": 2,
    "grad_accumulation": 3,
    "eval_batch_size": 16,
    "save_every": 1,
    "log_every": 1,
}
RUNS = {
    "full": ("finetune", {"train": {"ema_decay": 0.9}}),
    "lora": ("finetune", {"method": {"name": "lora", "dropout": 0.1}, "data": {"packing": "best-fit"}}),
    "prefix": ("finetune", {"method": {"name": "prefix"}}),
    "new tokens": ("finetune", {"model": {"add_tokens": ["Blorp"]}}),
    "dpo": ("dpo", {"dpo": {"precompute_reference": True}}),
    "pretrain": ("pretrain", {"train": {"eval_iters": 1}}),
}

SLOW = {"prefix", "new tokens", "dpo"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions of the starter's task, pairs of answers to them, and a corpus."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def job_of(name, data, output, **options):
    """The checked job of a run."""
    command, sections = RUNS[name]
    settings = {
        "model": {"path": str(STARTER / "model")},
        "train": TRAIN,
        "output": {"dir": str(output), "samples": 1, **options},
    }
    if command == "pretrain":
        settings["data"] = {"corpora": [str(data / "corpus")], "split": "8,1,1", "seq_length": 16}
    else:
        files = {split: str(data / f"{command}-{split}.jsonl") for split in ("train", "dev")}
        settings["data"] = {**files, "max_length": 160}
    return checked(command, settings, sections, "auto")


def _train(ranks, name, data, output):
    job = job_of(name, data, output)
    # As in the command, all have checked the output folder before one writes there.
    ranks.barrier()
    trainer.run(job, (), Console(quiet=True), ranks)


def losses_of(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row.get("loss", row.get("eval_loss")) for row in rows]


def tensors_of(folder):
    (file,) = [
        path for path in folder.glob("*.safetensors") if "optimizer" not in path.name and "average" not in path.name
    ]
    return load_file(file)


def assert_alike(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.parallel] * (name in SLOW)) for name in RUNS])
def test_two_processes_train_the_model_of_one(name, data, tmp_path):
    _train(ALONE, name, data, tmp_path / "one")
    run_ranks(2, _train, name, data, tmp_path / "two")
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert len(one) >= 3
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert_alike(tensors_of(tmp_path / "one" / "model"), tensors_of(tmp_path / "two" / "model"))
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


class _Cut(Callback):
    def on_save(self, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def _interrupted(ranks, data, output):
    job = job_of("full", data, output)
    ranks.barrier()
    try:
        trainer.run(job, [_Cut()] if ranks.main else (), Console(quiet=True), ranks)
    except trainer.Interrupted as stop:
        return stop.signal, stop.step


def _resumed(ranks, data, output):
    job = job_of("full", data, output, resume=True)
    trainer.run(job, (), Console(quiet=True), ranks)


def test_a_signal_to_one_rank_stops_all_and_another_number_of_processes_goes_on(data, tmp_path):
    _train(ALONE, "full", data, tmp_path / "whole")
    assert run_ranks(3, _interrupted, data, tmp_path / "cut") == [(signal.SIGTERM, 2)] * 3
    run_ranks(2, _resumed, data, tmp_path / "cut")
    np.testing.assert_allclose(losses_of(tmp_path / "cut"), losses_of(tmp_path / "whole"), rtol=1e-5)
    assert_alike(tensors_of(tmp_path / "whole" / "model"), tensors_of(tmp_path / "cut" / "model"))


SECRET = "a-value-of-the-environment"


def llmctl(*words, cwd):
    command = [sys.executable, "-m", "llmctl", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "LLMCTL_THREADS": "1", "LLMCTL_TEST_SECRET": SECRET})  # fmt: skip


def test_the_command_trains_by_two_processes_and_prints_once(data, tmp_path):
    settings = ["train.max_steps=2", "train.grad_accumulation=2", "train.batch_size=2", "train.eval_generate=false",
                "train.best_metric=eval_loss", "output.samples=0", f"data.dev=[{data / 'finetune-dev.jsonl'}]"]  # fmt: skip
    assignments = [word for setting in settings for word in ("--set", setting)]
    done = llmctl("--model", "llama", "finetune", "--output", "out", "--devices", "2", *assignments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("data parallel: 2 processes") == 1 and done.stdout.count("train: 4000 examples") == 1
    assert (tmp_path / "out" / "model" / "config.json").is_file() and (
        tmp_path / "out" / "logs" / "rank-1.log"
    ).is_file()
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 10 and not [path for path in written if SECRET.encode() in path.read_bytes()]
    again = llmctl("--model", "llama", "finetune", "--output", "out", "--devices", "2", *assignments, cwd=tmp_path)
    assert again.returncode == 2 and "is not empty" in again.stderr
    refused = llmctl("--model", "llama", "finetune", "--output", "new", "--devices", "3", *assignments, cwd=tmp_path)
    assert refused.returncode == 2 and "train.grad_accumulation=3" in refused.stderr and not (tmp_path / "new").exists()


def _two_machines(tmp_path, *more):
    """Exit code and output of two launchers on this machine."""
    (port,) = free_ports(1)
    settings = ["train.max_steps=2", "train.grad_accumulation=2", "train.batch_size=2", "train.eval_generate=false",
                "train.best_metric=eval_loss", "output.samples=0"]  # fmt: skip
    words = ["--nnodes", "2", "--master", f"127.0.0.1:{port}", *(w for one in settings for w in ("--set", one))]
    command = [sys.executable, "-m", "llmctl", "finetune", "--model", "llama", "--output", "out", *words]
    environment = {**os.environ, "LLMCTL_THREADS": "1"}
    started = [
        subprocess.Popen([*command, "--node-rank", str(number), *(more if number else ())], cwd=tmp_path, env=environment,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for number in range(2)
    ]  # fmt: skip
    return [(one.communicate(timeout=240)[0], one.returncode) for one in started]


def test_two_launchers_train_together(tmp_path):
    (first, code), (second, other) = _two_machines(tmp_path)
    assert (code, other) == (0, 0), first + second
    assert "data parallel: 2 processes" in first and "step" not in second
    assert json.loads((tmp_path / "out" / "run.json").read_text())["processes"] == 2


def test_launchers_with_unlike_configurations_end_at_once_and_name_the_key(tmp_path):
    (first, code), (second, other) = _two_machines(tmp_path, "--set", "train.learning_rate=0.5")
    assert (code, other) == (2, 2), first + second
    for said in (first, second):
        assert "train.learning_rate: 0.002 on machine 0, 0.5 on machine 1" in said and "Traceback" not in said

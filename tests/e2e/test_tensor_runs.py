"""Whole runs of every training method on ranks that share each layer write what one process writes."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from kit.corpora import write
from kit.model_cli import llmctl
from safetensors.numpy import load_file

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.config import schema
from llmctl.jobs.registry import COMMANDS, resolve
from llmctl.parallel.ranks import ALONE
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.testing.tiny import write_model
from llmctl.train import trainer
from llmctl.train.callbacks.base import Callback
from llmctl.train.console import Console

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"
TRAIN = {
    "max_steps": 3, "batch_size": 1, "grad_accumulation": 3, "eval_every": 2, "eval_batch_size": 16, "save_every": 3,
    "log_every": 1, "max_grad_norm": 0.05, "weight_decay": 0.1,
}  # fmt: skip
RUNS = {
    "full": ("finetune", {"name": "full"}, {"eval_generate": True}),
    "dora": ("finetune", {"name": "lora", "rank": 2, "dora": True, "lora_plus_ratio": 4.0}, {"recompute": "full"}),
    "pissa": ("finetune", {"name": "lora", "rank": 2, "pissa": True, "rslora": True}, {}),
    "int8": ("finetune", {"name": "lora", "rank": 2, "base": "int8"}, {}),
    "prefix": ("finetune", {"name": "prefix", "virtual_tokens": 3, "prefix_projection": True}, {}),
    "dpo": ("dpo", {"name": "full"}, {}),
    "dpo of adapters": ("dpo", {"name": "lora", "rank": 2, "pissa": True}, {}),
    "pretrain": ("pretrain", None, {}),
    "experts": ("finetune", {"name": "full"}, {"grad_accumulation": 4, "ema_decay": 0.5, "stats_every": 1}),
    "adapters of experts": ("finetune", {"name": "lora", "rank": 2}, {"grad_accumulation": 4}),
}
OVER_CODES = {"codes": ("finetune", {"name": "lora", "rank": 2, "dora": True}, {})}
FOLDERS = {"experts": "mixture", "adapters of experts": "mixture", "codes": "gptq"}
"""Run -> the folder of its model, where that is not ``model``."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data of all methods, and a model whose inputs are whole groups of a quantised base on each of two ranks."""
    folder = tmp_path_factory.mktemp("made")
    lines = (STARTER / "data" / "dev.jsonl").read_text().splitlines()[:9]
    (folder / "sft.jsonl").write_text("".join(f"{line}\n" for line in lines))
    rows = [json.loads(line) for line in lines]
    pairs = [{"prompt": r["src"], "chosen": r["tgt"], "rejected": r["tgt"][::-1]} for r in rows]
    (folder / "dpo.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    write(folder / "corpus", [np.arange(n) % 60 + 4 for n in range(5, 60)])
    shutil.copytree(STARTER / "model", folder / "model")
    plugin = plugins.load("llama")
    dims = plugin.card.dims_from_config(json.loads((folder / "model" / "config.json").read_text()))
    write_model(folder / "model", plugin, dims.replace(ffn=256, kv_heads=2))
    shutil.copytree(folder / "model", folder / "mixture")
    plugin = plugins.load("mixtral")
    sizes = {"experts": 8, "vocab": dims.vocab, "max_positions": 512, "balance": True}
    write_model(folder / "mixture", plugin, tiny_dims(plugin.card, sizes))
    return folder


@pytest.fixture(scope="module")
def codes(made):
    """The model as GPTQ; two ranks cut inputs within groups."""
    words = ("--method", "weight-only-int4", "--group", "128", "--format", "gptq")
    llmctl("quantize", made / "model", *words, "--output", made / "gptq")


class Until(Callback):
    """Stops a run after a step, as a signal does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, metrics):
        if metrics.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def train(ranks, made, output, run, parallel, until=0, resume=False):
    command, method, extra = (RUNS | OVER_CODES)[run]
    data = {"train": str(made / f"{'dpo' if command == 'dpo' else 'sft'}.jsonl"), "max_length": 96}
    sections = {
        "model": {"path": str(made / FOLDERS.get(run, "model")), "dtype": "float64"},
        "data": {**data, "dev": data["train"], "packing": "best-fit"},
        "method": method,
        "train": {**TRAIN, "eval_max_new_tokens": 12, **extra},
        "output": {"dir": str(output), "samples": 1, "resume": resume},
        "parallel": parallel,
    }
    if command == "pretrain":
        sections["model"] = {"size": "tiny", "tokenizer": str(STARTER / "model"), "dtype": "float64"}
        sections["data"] = {"corpora": [str(made / "corpus")], "split": "8,1,1", "seq_length": 32}
        sections["train"] = {**TRAIN, **extra, "eval_iters": 1, "test_iters": 1}
        del sections["method"]
    config = schema.build(resolve(COMMANDS[command].config), sections)
    job = resolve(COMMANDS[command].check)(config, "auto" if method else "llama", None)
    ranks.barrier()
    try:
        trainer.run(job, [Until(until)] if until and ranks.main else (), Console(quiet=True), ranks)
    except trainer.Interrupted as stop:
        assert stop.step == until


@pytest.fixture(scope="module")
def alone(made):
    """Run -> the output of one process."""
    done = set()

    def get(run):
        output = made / run
        if run not in done:
            train(ALONE, made, output, run, {})
            done.add(run)
        return output

    return get


def written(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.name}: {name}": value for file in files for name, value in load_file(file).items()}


def logged(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: v for key, v in row.items() if not key.startswith(("seconds", "tokens_per", "peak"))} for row in rows]


def assert_same_run(one, other):
    for folder in ("model", "checkpoints/step-000003"):
        expected, found = written(one / folder), written(other / folder)
        assert expected and expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-11, err_msg=name)
        names = [{path.name for path in (run / folder).iterdir()} for run in (one, other)]
        assert names[0] == names[1]
    for expected, found in zip(logged(one), logged(other), strict=True):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    answers = [json.loads((run / "run.json").read_text())["after"]["samples"] for run in (one, other)]
    assert answers[0] == answers[1]


FAST = ("full", "dora")


@pytest.mark.parametrize(
    "run",
    [pytest.param(run, marks=() if run in FAST else pytest.mark.parallel) for run in RUNS if "experts" not in run],
)
def test_what_two_ranks_write_is_what_one_process_writes(made, alone, tmp_path, run):
    parallel = {"tensor": 2, "sequence": run != "pissa"}
    run_ranks(2, train, made, tmp_path / "two", run, parallel, topology=Topology(tensor=2))
    assert_same_run(alone(run), tmp_path / "two")


@pytest.mark.parallel
@pytest.mark.parametrize("topology", [Topology(tensor=2), Topology(sharding=2), Topology(pipeline=2)], ids=str)
def test_what_ranks_write_over_codes_is_what_one_process_writes(made, codes, alone, tmp_path, topology):
    parallel = {"tensor": topology.tensor, "pipeline": topology.pipeline, "sharding": topology.sharding}
    parallel["sharding_stage"] = 3 if topology.sharding > 1 else 1
    run_ranks(2, train, made, tmp_path / "two", "codes", parallel, topology=topology)
    assert_same_run(alone("codes"), tmp_path / "two")


@pytest.mark.parallel
@pytest.mark.parametrize("run", [*RUNS, "dpo on tensor ranks"])
def test_what_ranks_that_share_the_weights_write_is_what_one_process_writes(made, alone, tmp_path, run):
    run, _, tensor = run.partition(" on tensor ")
    parallel = {"sharding": 2, "sharding_stage": 3, "tensor": 2 if tensor else 1}
    topology = Topology(sharding=2, tensor=parallel["tensor"])
    run_ranks(topology.size, train, made, tmp_path / "two", run, parallel, topology=topology)
    assert_same_run(alone(run), tmp_path / "two")


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("run", "topology", "stage"),
    [
        ("experts", Topology(data=2, expert=2), 1),
        ("experts", Topology(data=2, sharding=2, expert=4), 1),
        ("experts", Topology(sharding=2, tensor=2, expert=2), 2),
        ("experts", Topology(sharding=2, pipeline=2, expert=2), 3),
        ("adapters of experts", Topology(sharding=2, expert=2), 3),
    ],
    ids=str,
)
def test_what_ranks_with_experts_of_their_own_write_is_what_one_process_writes(
    made, alone, tmp_path, run, topology, stage
):
    parallel = {name: getattr(topology, name) for name in ("tensor", "pipeline", "sharding", "expert")}
    parallel["sharding_stage"] = stage
    run_ranks(topology.size, train, made, tmp_path / "more", run, parallel, topology=topology)
    assert_same_run(alone(run), tmp_path / "more")


@pytest.mark.parallel
def test_a_run_of_experts_continues_on_other_ranks(made, alone, tmp_path):
    output, sliced = tmp_path / "parts", {"expert": 2, "sharding": 4, "sharding_stage": 3}
    run_ranks(4, train, made, output, "experts", sliced, 1, topology=Topology(sharding=4, expert=2))
    train(ALONE, made, output, "experts", {}, 2, True)
    run_ranks(2, train, made, output, "experts", {"expert": 2}, 0, True, topology=Topology(data=2, expert=2))
    assert_same_run(alone("experts"), output)

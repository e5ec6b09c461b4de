"""Runs whose ranks have some of the layers each: the model, losses and checkpoints of one process, for every method."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kit.by_command import assert_same
from kit.corpora import write
from kit.pages import quick
from kit.started import LLMCTL

from llmctl.config import schema
from llmctl.jobs.registry import COMMANDS, resolve
from llmctl.parallel.ranks import ALONE
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.train import trainer
from llmctl.train.console import Console

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"
TRAIN = {
    "max_steps": 3,
    "batch_size": 2,
    "grad_accumulation": 3,
    "eval_every": 2,
    "eval_batch_size": 16,
    "save_every": 2,
    "log_every": 1,
    "max_grad_norm": 0.5,
}
PACKED = {"packing": "best-fit"}
RUNS = {
    "full": ("finetune", {"data": PACKED, "train": {"ema_decay": 0.5, "eval_generate": True}}),
    "lora": ("finetune", {"method": {"name": "lora"}, "data": PACKED}),
    "dora": ("finetune", {"method": {"name": "lora", "dora": True, "rank": 2}, "data": PACKED}),
    "prefix": ("finetune", {"method": {"name": "prefix", "virtual_tokens": 3}, "data": PACKED}),
    "projection": ("finetune", {"method": {"name": "prefix", "virtual_tokens": 3, "prefix_projection": True}}),
    "dropout": ("finetune", {"method": {"name": "lora", "dropout": 0.1}}),
    "noise": ("finetune", {"method": {"neftune_alpha": 5.0}}),
    "dpo": ("dpo", {"data": PACKED}),
    "dpo lora": ("dpo", {"method": {"name": "lora"}}),
    "dpo precomputed": ("dpo", {"dpo": {"precompute_reference": True}}),
    "pretrain": ("pretrain", {"train": {"eval_iters": 1}}),
    "deep": ("pretrain", {"train": {"eval_iters": 1, "grad_accumulation": 7}}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions of the starter's task, pairs of answers to them, and a corpus of documents."""
    folder = tmp_path_factory.mktemp("data")
    rows = [json.loads(line) for line in (STARTER / "data" / "dev.jsonl").read_text().splitlines()[:17]]
    pairs = [
        {"src": [row["src"]], "tgt": [], "response": [other["tgt"], row["tgt"]], "sort": [0, 1]}
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    for kind, lines in (("finetune", rows), ("dpo", pairs)):
        for name, some in (("train", lines), ("dev", lines[:4])):
            (folder / f"{kind}-{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
    write(folder / "corpus", [np.random.default_rng(i).integers(4, 60, 40) for i in range(40)])
    return folder


def job_of(name, data, output, parallel, dtype):
    """The checked job of a run."""
    command, sections = RUNS[name]
    settings = {
        "model": {"path": str(STARTER / "model"), "dtype": dtype},
        "train": TRAIN,
        "output": {"dir": str(output), "samples": 1, "save_dtype": "float32"},
        "parallel": parallel,
    }
    if command == "pretrain":
        settings["data"] = {
            "corpora": [str(data / "corpus")],
            "split": "8,1,1",
            "seq_length": 16,
            "separate_documents": True,
        }
        if name == "deep":
            settings["model"] = {"size": "tiny", "changes": ["num_hidden_layers=6"], "dtype": dtype}
            settings["model"]["tokenizer"] = str(STARTER / "model")
    else:
        files = {split: str(data / f"{command}-{split}.jsonl") for split in ("train", "dev")}
        settings["data"] = {**files, "max_length": 160}
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values}
    config = schema.build(resolve(COMMANDS[command].config), settings)
    return resolve(COMMANDS[command].check)(config, "llama", None)


def train(ranks, names, data, output, parallel, dtype):
    """One run after another; the ranks part after the last."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ranks, "close", lambda: None)
        for name in names:
            job = job_of(name, data, output / name, parallel, dtype)
            # As in the command, all have checked the output folder before one writes there.
            ranks.wait()
            trainer.run(job, (), Console(quiet=True), ranks)


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """Folder of the output that one process makes of a run."""
    folder = tmp_path_factory.mktemp("one")

    def output(name):
        if not (folder / name).exists():
            train(ALONE, [name], data, folder, {}, "float64")
        return folder / name

    return output


@pytest.fixture
def check(one, data, tmp_path):
    """Trains in a topology, and compares what is written."""

    def run(names, topology, parallel):
        output = tmp_path / str(topology.size)
        options = {"topology": topology, "seconds": 200.0}
        run_ranks(topology.size, train, names, data, output, parallel, "float64", **options)
        for name in names:
            assert_same(one(name), output / name, 1e-8)

    return run


def test_two_stages_write_what_one_process_writes(check):
    check(["full"], Topology(pipeline=2), {"pipeline": 2})


OTHERS = ("full", "deep", "dropout")


@pytest.mark.parallel
def test_every_method_is_trained_in_two_stages(check):
    check([name for name in RUNS if name not in OTHERS], Topology(pipeline=2), {"pipeline": 2})


@pytest.mark.parallel
def test_tensor_and_pipeline_ranks_together(check):
    parallel = {"pipeline": 2, "tensor": 2, "sequence": True}
    check(["full", "dora", "prefix", "dpo"], Topology(pipeline=2, tensor=2), parallel)


@pytest.mark.parallel
def test_stages_that_share_the_optimizer_with_other_rows(check):
    """Gradients and weights too: test_topologies."""
    parallel = {"pipeline": 2, "sharding": 2}
    check(["full"], Topology(pipeline=2, sharding=2), parallel)


@pytest.mark.parallel
def test_uneven_stages_with_copies(check):
    check(["dpo"], Topology(pipeline=2, data=2), {"pipeline": 2, "stages": [1, 3], "data": 2})


@pytest.mark.parallel
def test_stages_of_several_parts(check):
    check(["deep"], Topology(pipeline=3), {"pipeline": 3, "chunks": 2})


@pytest.mark.parallel
def test_the_command_writes_the_tensors_of_one_process_and_notes_dropout(data, tmp_path):
    """In float32, by the launcher; dropout is noted and does not end the run.

    A larger epsilon than usual: where a gradient is all rounding, Adam divides it by itself.
    """
    degrees = {1: {}, 2: {"pipeline": 2}, 4: {"tensor": 2, "pipeline": 2}}
    for name, devices in (("full", 1), ("full", 4), ("dropout", 2)):
        output = tmp_path / f"{name}{devices}"
        job = job_of(name, data, output, {}, "float32")
        config = tmp_path / f"{name}{devices}.yaml"
        config.write_text(json.dumps(schema.to_dict(job.config)))
        options = quick({"train.adam_eps": 1e-3, **{f"parallel.{key}": n for key, n in degrees[devices].items()}})
        command = ["--model", "llama", "finetune", str(config), "--devices", str(devices), *options]
        done = subprocess.run([*LLMCTL, *command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        noted = json.loads((output / "run.json").read_text()).get("dropout", "")
        assert ("each of the 2 ranks" in noted) == (name == "dropout")
    assert_same(tmp_path / "full1", tmp_path / "full4", 1e-5)

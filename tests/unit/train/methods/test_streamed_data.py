"""A run with ``data.streaming`` has the batches of one without, and continues it; mixtures are of their files' shares."""

import json
from collections import Counter

import numpy as np
import pytest
from kit.cut_runs import Crash, losses
from kit.pages import STARTER

import llmctl
from llmctl.api import training
from llmctl.data.streaming import StreamedExamples
from llmctl.errors import ConfigError
from llmctl.train.console import Console
from llmctl.train.methods import dpo, sft

WORDS = ["Tom", "Mia", "Leo", "likes", "tea", "kite", "red", "blue", "has", "a", "the", "not"]


def text(random, most):
    return " ".join(random.choice(WORDS, random.integers(1, most)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, count in (("a", 23), ("b", 7)):
        rows = [{"src": text(random, 40), "tgt": text(random, 60)} for _ in range(count)]
        pairs = [
            {"prompt": text(random, 20), "chosen": text(random, 20), "rejected": text(random, 25)} for _ in range(count)
        ]
        # Nothing is left of an answer behind a long system prompt, nor a difference behind the same beginning.
        rows.insert(3, {"src": "kite", "tgt": "tea", "system": "kite " * 90})
        pairs.insert(5, {"prompt": "Tom", "chosen": "tea " * 90 + "a", "rejected": "tea " * 90 + "b"})
        for kind, found in (("sft", rows), ("dpo", pairs)):
            (folder / f"{kind}-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder


def config(folder, command, output="out", train=None, **data):
    limits = {"src_length": 40} if command == "finetune" else {"max_prompt_length": 24}
    kind = "sft" if command == "finetune" else "dpo"
    return {
        "model": {"path": str(STARTER / "model")},
        "data": {"train": [str(folder / f"{kind}-{name}.jsonl") for name in "ab"], "max_length": 48, **limits, **data},
        "train": {"batch_size": 2, "grad_accumulation": 2, "seed": 3, **(train or {})},
        "output": {"dir": str(folder / output), "samples": 0},
    }


def prepared(folder, command, **data):
    job = training.check_job(command, training.make_config(command, config(folder, command, **data), [], ""), "auto")
    return job, (sft if command == "finetune" else dpo).prepare(job, Console(quiet=True)).task


MIXED = {"weights": [1, 2]}


@pytest.mark.parametrize(
    ("command", "data"),
    [
        ("finetune", {}),
        ("finetune", {"packing": "first-come", "dev_size": 5}),
        ("finetune", {"packing": "best-fit", **MIXED}),
        ("finetune", {"shuffle": False, "dev_size": 0.2, **MIXED}),
        ("dpo", {"dev_size": 4}),
        ("dpo", {"packing": "first-come", "packed_length": 96, **MIXED}),
    ],
)
def test_batches_are_those_of_data_in_memory(folder, command, data):
    (_, whole), (job, streamed) = (prepared(folder, command, streaming=how, **data) for how in (False, True))
    assert isinstance(job.train, StreamedExamples)
    assert streamed.fingerprint == whole.fingerprint and streamed.steps_per_epoch == whole.steps_per_epoch
    assert len(whole.train) < len(job.train)
    for step in range(1, 2 * whole.steps_per_epoch + 1):
        for ours, theirs in zip(streamed.micro_batches(step), whole.micro_batches(step), strict=True):
            assert ours.sources == theirs.sources and ours.arrays.keys() == theirs.arrays.keys()
            assert all(np.array_equal(ours.arrays[name], theirs.arrays[name]) for name in ours.arrays)
    assert [row.source for row in streamed.dev] == [row.source for row in whole.dev]


def test_a_run_continues_with_the_data_streamed(folder):
    train = {"max_steps": 4, "save_every": 2}
    llmctl.finetune(config(folder, "finetune", "whole", train), quiet=True)
    with pytest.raises(RuntimeError, match="power cut"):
        llmctl.finetune(config(folder, "finetune", "cut", train), callbacks=[Crash()], quiet=True)
    again = config(folder, "finetune", "cut", train, streaming=True)
    again["output"]["resume"] = True
    run = llmctl.finetune(again, quiet=True)
    assert losses(folder / "cut") == losses(folder / "whole")
    assert (run.model / "model.safetensors").read_bytes() == (
        folder / "whole" / "model" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(("command", "data"), [("finetune", {}), ("finetune", {"packing": "best-fit"}), ("dpo", {})])
def test_files_have_the_shares_of_their_weights(folder, command, data):
    _, task = prepared(folder, command, weights=[1, 1], **data)
    seen = Counter(
        source.partition(".jsonl")[0][-1]
        for step in range(1, task.steps_per_epoch + 1)
        for batch in task.micro_batches(step)
        for row in batch.sources
        for source in row.split(", ")[:1]
    )
    assert abs(seen["a"] - seen["b"]) <= 1 and sum(seen.values()) == len(task.train)
    assert prepared(folder, command, **data)[1].fingerprint != task.fingerprint


def test_weights_that_fit_no_files_are_refused(folder):
    with pytest.raises(ConfigError, match=r"data.weights has 1 numbers for the 2 entries of data.train"):
        prepared(folder, "finetune", weights=[1])
    with pytest.raises(ConfigError, match=r"data.weights=\[1.0, 0.0\]: must be above 0"):
        prepared(folder, "finetune", weights=[1, 0])
    with pytest.raises(ConfigError, match=r"gives .*sft-b.jsonl none of the 30 rows"):
        prepared(folder, "finetune", weights=[1000, 1])

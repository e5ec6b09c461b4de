"""Degrees that cannot be trained: refused with key, value and what is allowed, in under a second and without paddle."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"
CASES = {
    "devices": (["--devices", "3", "parallel.tensor=2"], ["parallel.tensor=2", "2 devices or a multiple of that", "are 3"]),
    "too few devices": (["parallel.tensor=2"], ["parallel.tensor=2", "there is 1", "--devices"]),
    "data": (["--devices", "4", "parallel.data=2"], ["parallel.data=2 needs 2 devices", "parallel.data=0"]),
    "heads": (["--devices", "3", "parallel.tensor=3"], ["parallel.tensor=3", "heads=4", "use one of 1, 2, 4"]),
    "layers": (["--devices", "64", "parallel.pipeline=64"], ["parallel.pipeline=64", "4 layers; use at most 4"]),
    "layers of stages": (
        ["--devices", "2", "parallel.pipeline=2", "parallel.stages=[1,2]"],
        ["parallel.stages=[1, 2]", "have 3 layers together", "the model has 4"],
    ),
    "stages": (["--devices", "2", "parallel.pipeline=2", "parallel.stages=[5]"], ["parallel.stages=[5] has length 1, not that of parallel.pipeline=2"]),
    "sequence": (["--devices", "2", "parallel.sequence=true"], ["parallel.sequence=true needs parallel.tensor above 1"]),
    "chunks": (["--devices", "2", "parallel.pipeline=2", "parallel.chunks=2"], ["parallel.pipeline of at least 3, not 2"]),
    "passes of chunks": (
        ["--devices", "3", "parallel.pipeline=3", "parallel.chunks=2"],
        ["train.grad_accumulation=4", "needs at least 6"],
    ),
    "stage 3 with chunks": (
        ["--devices", "6", "parallel.pipeline=3", "parallel.chunks=2", "parallel.sharding=2", "parallel.sharding_stage=3",
         "train.grad_accumulation=12"],
        ["does not combine with parallel.sharding_stage=3"],
    ),
    "passes": (["--devices", "8", "train.grad_accumulation=4"], ["8 devices share the train.grad_accumulation=4", "=8"]),
    "experts": (["--devices", "2", "parallel.expert=2"], ["parallel.expert=2", "has no experts"]),
    "expert ranks": (["--devices", "4", "parallel.expert=3"], ["parallel.expert=3", "the 4 data parallel groups", "use one of 1, 2, 4"]),
    "an expert rank alone": (["--devices", "1", "parallel.expert=2"], ["parallel.expert=2", "and there is 1; start more devices"]),
    "a key of others": (["parallel.zero_stage=3"], ["parallel.zero_stage; did you mean parallel.sharding_stage?"]),
    "base": (
        ["--devices", "2", "parallel.tensor=2", "method.name=lora", "method.base=nf4"],
        ["parallel.tensor=2 cuts the", "groups of 64", "method.base=nf4", "or method.base=float"],
    ),
    "a stage of sharding": (["parallel.sharding_stage=4"], ["parallel.sharding_stage=4: allowed are 1, 2, 3"]),
}  # fmt: skip

PROGRAM = """
import contextlib, io, json, sys, time
from llmctl.cli import main
import llmctl.commands.configured
answers = {}
for name, arguments in json.loads(sys.argv[1]).items():
    out, began, code = io.StringIO(), time.process_time(), None
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    answers[name] = [code, out.getvalue(), time.process_time() - began, "paddle" in sys.modules]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    sections = {
        "model": {"path": str(STARTER / "model")},
        "data": {"train": str(STARTER / "data" / "dev.jsonl")},
        "train": {"batch_size": 2, "grad_accumulation": 4},
        "output": {"dir": str(folder / "out")},
    }
    (folder / "config.yaml").write_text(json.dumps(sections))
    calls = {}
    for name, (given, _) in CASES.items():
        options = given[:2] if given[0].startswith("--") else []
        sets = [part for one in given[len(options) :] for part in ("--set", one)]
        calls[name] = ["finetune", str(folder / "config.yaml"), *options, *sets]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)], capture_output=True, text=True, check=True
    )
    assert not (folder / "out").exists()
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_at_once_without_paddle(name, answers):
    code, text, seconds, paddle = answers[name]
    for part in CASES[name][1]:
        assert part in text
    assert code == 2 and "Traceback" not in text
    assert seconds < 1 and not paddle

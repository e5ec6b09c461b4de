"""Ranks that are killed at any moment: the command says so within seconds, and what was saved goes on unchanged."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kit.pages import lay_out, quick
from kit.started import LLMCTL, children, ended, losses, start
from safetensors.numpy import load_file

from llmctl.train.callbacks import checkpoints

pytestmark = [
    pytest.mark.parallel,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]

STEPS, SECONDS = 6, 15.0
SETTINGS = {
    "model.path": "path/to/model",
    "model.dtype": "float64",
    "data.train": "my-data/train.jsonl",
    "data.dev": "my-data/dev.jsonl",
    "data.max_length": 64,
    "train.max_steps": STEPS,
    "train.save_every": 1,
    "train.save_total_limit": 0,
    "train.eval_every": STEPS,
    "train.eval_before": "false",
    "train.eval_generate": "false",
    "train.grad_accumulation": 2,
    "train.batch_size": 2,
    "train.log_every": 1,
    "output.samples": 0,
}
TOPOLOGIES = ({"parallel.sharding": 2, "parallel.sharding_stage": 2}, {"parallel.tensor": 2}, {"parallel.pipeline": 2})


def training(output, devices=1, restarts=0, **settings):
    """The process of the command."""
    options = ["--devices", devices, "--max-restarts", restarts] if devices > 1 else []
    return start([*LLMCTL, "finetune", "--output", output, *options, *quick({**SETTINGS, **settings})])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder where runs find their model and data, and where one process has written ``one``."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("killed"))
        lay_out(32)
        (code,), (said,) = ended(training("one"))
        assert code == 0, said
        yield Path.cwd()


def kill(launcher, output, chance, saving):
    """Kills a rank at a random moment, or while a checkpoint is written; the rank, and when.

    Args:
        launcher: The process that started the ranks.
        output: The output folder.
        chance: What draws.
        saving: Waits for the first sign of a checkpoint.
    """
    saved, later = chance.randrange(STEPS), 0 if saving else chance.uniform(0, 1)
    while launcher.poll() is None and (len(children(launcher)) < 2 or not so_far(output, saved, saving)):
        wait(launcher, 0.002)
    wait(launcher, later)
    rank = chance.randrange(2)
    try:
        os.kill(children(launcher)[rank], signal.SIGKILL)
    except (FileNotFoundError, IndexError, ProcessLookupError):
        return None, time.monotonic()
    return rank, time.monotonic()


def wait(process, seconds):
    """For so long, unless it ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def so_far(output, saved, saving):
    """Whether so many checkpoints are complete, and another one is being written if that is asked for."""
    folder = output / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    complete = [name for name in names if name.startswith("step-")]
    return len(complete) >= saved and (not saving or len(names) > len(complete))


def assert_alike(one, other):
    """All tensors in two folders are the same but for rounding."""
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert files and files == sorted(path.name for path in other.glob("*.safetensors"))
    for file in files:
        expected, found = load_file(one / file), load_file(other / file)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-8, atol=1e-10, err_msg=f"{file}: {name}")


def killed(place, number):
    """One command, of which a rank is killed; every second one is started again. What happened, in words."""
    chance, restarts = random.Random(number), number % 2
    output = place / f"killed-{number}"
    launcher = training(output, 2, restarts, **TOPOLOGIES[number % len(TOPOLOGIES)])
    rank, moment = kill(launcher, output, chance, number // 2 % 2)
    before = checkpoints.newest(output / "checkpoints") if rank is not None else None
    (code,), (said,) = ended(launcher)
    took = time.monotonic() - moment
    if rank is None:
        assert code == 0, said
        return "it had ended"
    if restarts:
        assert code == 0, said
    else:
        assert took < SECONDS and code == 128 + signal.SIGKILL, said
    assert f"rank {rank} was ended by signal 9 (SIGKILL)" in said and "Traceback" not in said, said
    last = checkpoints.newest(output / "checkpoints")
    if last:
        assert_alike(place / "one" / "checkpoints" / last.name, last)
    if restarts:
        assert_alike(place / "one" / "model", output / "model")
        assert losses(output) == pytest.approx(losses(place / "one"), rel=1e-8)
        assert not so_far(output, 0, True)
    return (
        f"rank {rank} after {before and before.name}, ended {took:.1f} s later with {code}, last {last and last.name}"
    )


@pytest.mark.parametrize("number", [2, 3])
def test_a_rank_is_killed_at_any_moment(place, number):
    killed(place, number)

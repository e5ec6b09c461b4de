"""Runs in one arrangement of processes that are continued in others: the model is that of one process, step by step."""

import json
import os
import shutil
import signal
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from llmctl.config import schema
from llmctl.jobs.registry import COMMANDS, resolve
from llmctl.parallel.ranks import ALONE
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.train import trainer
from llmctl.train.callbacks import checkpoints
from llmctl.train.callbacks.base import Callback
from llmctl.train.console import Console
from llmctl.train.full_state import FullState
from llmctl.train.loop import Loop

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"
STEPS = 4


def job_of(data, output, method, resume, stage, offload=False, save_every=STEPS, async_save=False):
    """The checked job of a short run that is clipped, averaged and evaluated."""
    config = schema.build(
        resolve(COMMANDS["finetune"].config),
        {
            "model": {"path": str(STARTER / "model"), "dtype": "float64"},
            "data": {"train": str(data), "dev": str(data), "max_length": 160, "packing": "best-fit"},
            "method": method,
            "train": {
                "max_steps": STEPS,
                "batch_size": 1,
                "grad_accumulation": 5,
                "eval_every": 2,
                "eval_batch_size": 16,
                "save_every": save_every,
                "log_every": 1,
                "stats_every": 2,
                "max_grad_norm": 0.05,
                "weight_decay": 0.1,
                "ema_decay": 0.5,
            },
            "output": {"dir": str(output), "samples": 1, "resume": resume, "async_save": async_save},
            "parallel": {"offload": offload, **({"sharding": 2, "sharding_stage": stage} if stage > 1 else {})},
        },
    )
    return resolve(COMMANDS["finetune"].check)(config, "auto", None)


class _Until(Callback):
    """Stops a run after a step, as a signal does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, metrics):
        if metrics.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def train(ranks, data, output, method, until=STEPS, resume=False, stage=1, offload=False, **options):
    job = job_of(data, output, method, resume, stage, offload, **options)
    # As in the command, all have checked the output folder before one writes there.
    ranks.barrier()
    try:
        trainer.run(job, [_Until(until)] if ranks.main and until < STEPS else (), Console(quiet=True), ranks)
    except trainer.Interrupted as stop:
        assert stop.step == until


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    lines = (STARTER / "data" / "dev.jsonl").read_text().splitlines()[:13]
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def written(folder):
    """All tensors in a folder, by file and name."""
    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.name}: {name}": value for file in files for name, value in load_file(file).items()}


def assert_alike(one, other, tolerance=1e-9):
    one, other = written(one), written(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=tolerance, atol=tolerance * 1e-2, err_msg=name)


def logged(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [[row.get(key) for key in ("step", "loss", "eval_loss", "grad_norm")] for row in rows]


FULL, LORA, PREFIX = (
    {"name": "full"},
    {"name": "lora", "rank": 2, "dora": True},
    {"name": "prefix", "virtual_tokens": 3},
)


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """Method -> the output of one process."""
    made = {}

    def get(name, method):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "one"
            train(ALONE, data, made[name], method)
        return made[name]

    return get


CHAINS = {
    "full": (
        FULL,
        [
            (Topology(sharding=2), 2, 1),
            (Topology(sharding=2), 3, 2),
            (Topology(), 1, 3),
            (Topology(data=2, sharding=2), 1, STEPS, True),
        ],
    ),
    "lora": (LORA, [(Topology(data=2), 1, 1), (Topology(sharding=2), 3, STEPS, True)]),
    "combined": (
        FULL,
        [
            (Topology(tensor=2, sharding=2), 3, 1),
            (Topology(pipeline=2, sharding=2), 2, 2),
            (Topology(pipeline=2, sharding=2), 3, 3, True),
            (Topology(tensor=2, pipeline=2), 1, STEPS, True),
        ],
    ),
    "prefix": (PREFIX, [(Topology(data=2), 1, 1), (Topology(sharding=2), 2, STEPS, True)]),
    "offload": (FULL, [(Topology(), 1, 2, True), (Topology(), 1, 3), (Topology(), 1, STEPS, True)]),
}


SLOW = {"full", "lora", "combined"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.parallel] * (name in SLOW)) for name in CHAINS])
def test_a_run_continues_in_any_other_arrangement(name, one, data, tmp_path):
    """Weights, moments, averages, losses, norms and statistics of the run that one process made without a break."""
    method, chain = CHAINS[name]
    whole, output = one(method["name"], method), tmp_path / "parts"
    for index, (topology, stage, until, *offload) in enumerate(chain):
        run = (data, output, method, until, index > 0, stage, *offload)
        if topology.size == 1:
            train(ALONE, *run)
        else:
            run_ranks(topology.size, train, *run, topology=topology)
    last = f"checkpoints/step-{STEPS:06}"
    for folder in (last, "model"):
        assert_alike(whole / folder, output / folder)
        assert {path.name for path in (whole / folder).iterdir()} == {path.name for path in (output / folder).iterdir()}
    for expected, found in zip(logged(whole), logged(output), strict=True):
        np.testing.assert_allclose(np.array(found, float), np.array(expected, float), rtol=1e-9)
    statistics = [
        json.loads((run / "statistics.jsonl").read_text().splitlines()[-1])["tensors"] for run in (whole, output)
    ]
    assert statistics[0].keys() == statistics[1].keys()
    for key, row in statistics[0].items():
        assert statistics[1][key] == pytest.approx(row, rel=1e-8), key
    assert json.loads((output / last / "trainer_state.json").read_text()) == json.loads(
        (whole / last / "trainer_state.json").read_text()
    )


def _saves_at_once(mesh, data, output, step, stage):
    """Resumes, and saves as another step without taking one."""

    def run(loop, done):
        loop._call("on_train_begin", done + 1, loop.settings)
        loop.ranks.lead(lambda: loop._call("on_save", step))
        raise trainer.Interrupted(signal.SIGTERM, step)

    Loop.run = run
    train(mesh, data, output, FULL, step, resume=True, stage=stage)


def hashes(checkpoint):
    return {name: (value.dtype, sha256(value.tobytes()).digest()) for name, value in written(checkpoint).items()}


@pytest.mark.parallel
def test_a_checkpoint_has_the_same_bytes_whoever_saves_it(one, data, tmp_path):
    """Read and written again by other arrangements, one after the other: weights, moments and averages."""
    output = tmp_path / "run"
    shutil.copytree(one("full", FULL), output)
    expected = hashes(output / "checkpoints" / f"step-{STEPS:06}")
    assert len(expected) > 60
    for step, (topology, stage) in enumerate(
        [(Topology(sharding=2), 3), (Topology(tensor=2, pipeline=2), 1), (Topology(sharding=2), 2)], STEPS + 1
    ):
        run_ranks(topology.size, _saves_at_once, data, output, step, stage, topology=topology)
        assert hashes(output / "checkpoints" / f"step-{step:06}") == expected, topology


def _killed(mesh, data, output, victim, asynchronous):
    """Ends a rank by SIGKILL in the middle of the second checkpoint."""
    calls, bring = [], FullState._bring

    def counted(whole, *args):
        if (output / "checkpoints" / "step-000001" / "trainer_state.json").is_file():
            calls.append(args)
        if len(calls) > 5 and mesh.rank.number == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return bring(whole, *args)

    FullState._bring = counted
    train(mesh, data, output, FULL, save_every=1, async_save=asynchronous)


@pytest.mark.parallel
@pytest.mark.parametrize(("victim", "asynchronous"), [(0, False), (1, True)])
def test_a_rank_that_is_killed_while_saving_leaves_the_checkpoint_before(one, data, tmp_path, victim, asynchronous):
    output = tmp_path / "run"
    with pytest.raises(AssertionError, match="PeerLost|ended without an answer"):
        run_ranks(2, _killed, data, output, victim, asynchronous, topology=Topology(sharding=2))
    assert checkpoints.newest(output / "checkpoints").name == "step-000001"
    train(ALONE, data, output, FULL, resume=True)
    assert_alike(one("full", FULL) / "model", output / "model")

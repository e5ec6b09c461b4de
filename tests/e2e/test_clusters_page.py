"""The commands and templates of docs/clusters.md start runs of two processes, with the environments that clusters would set."""

import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
import yaml
from kit.pages import config_of, lay_out, quick
from kit.readme import ROOT
from kit.started import LLMCTL, children, ended, lines_until, losses, start

from llmctl.parallel.launch import free_ports

pytestmark = pytest.mark.parallel

PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
TEMPLATES = [list(yaml.safe_load_all(text)) for text in re.findall(r"```yml\n(.*?)```", PAGE, re.DOTALL)]
SHORT = {
    "train.max_steps": 2,
    "train.save_every": 1,
    "train.grad_accumulation": 2,
    "train.eval_before": "false",
    "train.log_every": 1,
    "data.max_length": 64,
    "output.samples": 0,
}


def command(words):
    """The llmctl command in the words of a script, on one device for each machine."""
    words = list(map(str, words[words.index("llmctl") + 1 :]))
    if "--devices" in words:
        words[words.index("--devices") + 1] = "1"
    return [*LLMCTL, *words]


def of_script(text):
    return [command(shlex.split(line)) for line in text.splitlines() if "llmctl" in line and not line.startswith("#")]


def container(template):
    job = next(part for part in template if part["kind"].endswith("Job"))
    spec = job["spec"].get("worker", job["spec"])["template"]["spec"]
    return command(spec["containers"][0]["command"])


def slurm(number, port, nodes=2):
    each = 2 // nodes
    return {
        "SLURM_JOB_ID": str(port // 64),
        "SLURM_STEP_ID": str(port % 64),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number % each),
        "SLURM_NODEID": str(number // each),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})",
        "SLURM_STEP_NODELIST": "127.0.0.1",
    }


def mpi(number, port):
    return {
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": f"prterun-{port}@1",
    }


def paddlejob(number, port):
    return {
        "PADDLE_TRAINER_ID": str(number),
        "PADDLE_TRAINERS_NUM": "2",
        "PADDLE_TRAINERS": "127.0.0.1,127.0.0.1",
        "PADDLE_TRAINER_ENDPOINTS": f"127.0.0.1:{port},127.0.0.1:{port}",
        "PADDLE_PORT": str(port),
        "POD_IP": "127.0.0.1",
    }


def indexed(number, port):
    return {"JOB_COMPLETION_INDEX": str(number)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(16)
    Path("cluster.yaml").write_text(config_of("docs/clusters.md"), encoding="utf-8")
    return tmp_path


def start_two(words, environment, settings=SHORT):
    """Two processes of a command, each with its environment."""
    (port,) = free_ports(1)
    words = [word.replace("llmctl-0.llmctl:6170", f"127.0.0.1:{port}") for word in words]
    return [start([*words, *quick(settings)], **environment(number, port)) for number in range(2)]


CASES = {
    "slurm, a task for each machine": (of_script(SCRIPTS[0])[0], slurm),
    "slurm, a task for each device": (of_script(SCRIPTS[1])[0], lambda number, port: slurm(number, port, 1)),
    "paddle's operator": (container(TEMPLATES[0]), paddlejob),
    "a plain job": (container(TEMPLATES[1]), indexed),
    "mpirun": (of_script(SCRIPTS[2])[0], mpi),
    "mpirun on several machines": (
        of_script(SCRIPTS[2])[1],
        lambda number, port: {**mpi(number, port), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    ),
}


FAULTS = "slurm, a task for each machine"
"""The case of the tests of faults, which train in the same way."""


def test_every_command_of_the_page_is_a_case():
    assert len(CASES) == PAGE.count("llmctl finetune") + PAGE.count("[llmctl, finetune")


@pytest.mark.parametrize("name", [name for name in CASES if name != FAULTS])
def test_two_processes_train_together_without_flags(name, place):
    codes, outputs = ended(*start_two(*CASES[name]))
    assert codes == [0, 0], outputs
    assert json.loads(Path("runs/cluster/run.json").read_text())["processes"] == 2
    assert not re.search("traceback", "".join(outputs), re.IGNORECASE)


@pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc")
def test_sigterm_to_all_processes_of_a_job_saves_and_the_next_job_continues(place):
    long = {**SHORT, "train.max_steps": 60, "train.save_every": 60, "train.eval_every": 60}
    words, environment = CASES[FAULTS]
    started = start_two(words, environment, long)
    lines_until(started[0], " 2/60 ")
    # Slurm sends it to every process of a step, launchers and ranks.
    everyone = [pid for one in started for pid in (one.pid, *children(one))]
    assert len(everyone) == 4
    for pid in everyone:
        os.kill(pid, signal.SIGTERM)
    codes, outputs = ended(*started)
    assert codes == [143, 143], outputs
    assert "interrupted after step" in outputs[0] and "error:" not in "".join(outputs)
    codes, outputs = ended(*start_two(words, environment, long))
    assert codes == [0, 0] and "resuming from runs/cluster/checkpoints" in outputs[0], outputs
    assert list(losses("runs/cluster")) == list(range(1, 61))


@pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc")
def test_after_a_rank_is_killed_all_machines_continue_from_the_newest_checkpoint(place):
    words, environment = CASES[FAULTS]
    started = start_two(words, environment, {**SHORT, "train.max_steps": 12})
    lines_until(started[0], " 3/12 ")
    os.kill(children(started[1])[0], signal.SIGKILL)
    codes, outputs = ended(*started)
    assert codes == [0, 0], outputs
    assert "rank 1 was ended by signal 9 (SIGKILL)" in outputs[1] and "restart 1 of 3" in outputs[0]
    assert "resuming from runs/cluster/checkpoints" in outputs[0]
    assert list(losses("runs/cluster")) == list(range(1, 13))

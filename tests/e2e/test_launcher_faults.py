"""The end of the command that started the processes of a run: nothing is left, and what can be saved is."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from kit.pages import lay_out, quick
from kit.started import LLMCTL, children, ended, lines_until, losses, start

pytestmark = [
    pytest.mark.parallel,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]

LONG = {
    "model.path": "path/to/model",
    "data.train": "my-data/train.jsonl",
    "data.dev": "my-data/dev.jsonl",
    "data.max_length": 64,
    "train.max_steps": 10000,
    "train.save_every": 10000,
    "train.eval_every": 10000,
    "train.grad_accumulation": 2,
    "train.batch_size": 2,
    "train.eval_before": "false",
    "train.log_every": 1,
    "output.samples": 0,
}


@pytest.fixture
def running(tmp_path, monkeypatch):
    """A launcher whose two ranks train, and the ranks."""
    monkeypatch.chdir(tmp_path)
    lay_out(16)
    Path("temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    launcher = start([*LLMCTL, "finetune", "--output", "out", "--devices", "2", *quick(LONG)])
    lines_until(launcher, " 2/10000 ")
    ranks = children(launcher)
    assert len(ranks) == 2
    yield launcher, ranks
    launcher.kill()
    launcher.wait()


def alive(pids):
    """Those that run, zombies left out."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        found += [pid] if state not in "ZX" else []
    return found


def test_when_the_launcher_is_killed_no_process_and_no_temporary_file_of_the_run_is_left(running):
    launcher, ranks = running
    os.kill(launcher.pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while alive(ranks) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(ranks) and not list(Path("temporary").iterdir())


def test_ctrl_c_saves_and_ends_with_130(running):
    launcher, ranks = running
    os.kill(launcher.pid, signal.SIGINT)
    (code,), (said,) = ended(launcher)
    assert code == 130 and "interrupted after step" in said and "Traceback" not in said
    last = max(losses("out"))
    assert Path(f"out/checkpoints/step-{last}").is_dir() or list(Path("out/checkpoints").iterdir())
    assert not alive(ranks)


def test_ctrl_c_twice_ends_at_once(running):
    launcher, ranks = running
    began = time.monotonic()
    os.kill(launcher.pid, signal.SIGINT)
    os.kill(launcher.pid, signal.SIGUSR1)
    (code,), _ = ended(launcher, seconds=20)
    assert code == 130 and time.monotonic() - began < 5 and not alive(ranks)

"""A run that is killed or interrupted, and continued, gives the losses and weights of one that never stopped."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"
SETTINGS = {
    "train.max_steps": 12,
    "train.batch_size": 4,
    "train.grad_accumulation": 2,
    "train.save_every": 4,
    "train.eval_every": 6,
    "train.log_every": 1,
    "train.schedule": "cosine",
    "train.ema_decay": 0.8,
    "train.eval_generate": "false",
    "train.best_metric": "eval_loss",
    "output.samples": 0,
}


def command(output: Path, *more: str) -> list[str]:
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    data = ["--set", f"data.dev={output.parent / 'dev.jsonl'}"]
    return [
        sys.executable, "-m", "llmctl", "--model", "llama", "finetune", "--output", str(output), *settings, *data, *more,
    ]  # fmt: skip


def run(output: Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(output, *more), capture_output=True, text=True, timeout=300, check=False)


def stop_at(output: Path, step: int, how: signal.Signals) -> tuple[int, str]:
    """Starts a run and sends it a signal when it reports a step; returns its exit code and output."""
    process = subprocess.Popen(
        command(output), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(rf"step\s+{step}/", line):
            process.send_signal(how)
            break
    rest, _ = process.communicate(timeout=300)
    return process.returncode, "".join(lines) + rest


def losses(output: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "lr", "grad_norm", "eval_loss", "accuracy")
    return [tuple(row.get(key) for key in keys) for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    lines = (STARTER / "data" / "dev.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    (folder / "dev.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    done = run(folder / "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(losses(folder / "whole")) == 14
    return folder / "whole"


def report(output: Path) -> str:
    return (output / "report.html").read_text(encoding="utf-8")


def same(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    assert (one / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()


def test_a_killed_run_continues_bit_equal(folder, whole):
    code, _ = stop_at(folder / "killed", 7, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (folder / "killed" / "model").exists()
    assert "Not finished" in report(folder / "killed")
    done = run(folder / "killed", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"resuming from .*step-00000[46]", done.stdout)
    assert "Finished after 12 steps" in report(folder / "killed")
    same(whole, folder / "killed")


def test_ctrl_c_saves_says_how_to_go_on_and_continues_bit_equal(folder, whole):
    code, text = stop_at(folder / "interrupted", 5, signal.SIGINT)
    assert code == 130, text
    assert "--resume" in text and "Traceback" not in text
    assert re.search(r"saved .*step-00000\d", text)
    assert "Interrupted after step" in report(folder / "interrupted")
    done = run(folder / "interrupted", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    same(whole, folder / "interrupted")


def test_other_data_cannot_be_continued(folder, whole):
    done = run(whole, "--resume", "--set", "train.batch_size=3")
    assert done.returncode == 2 and "train.batch_size: 4 when the run began, 3 now" in done.stderr, done.stderr

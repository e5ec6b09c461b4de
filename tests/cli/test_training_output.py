"""What a training run prints: words, JSON lines or nothing; a banner first, and evaluations where they are wanted."""

import json

import pytest
from kit.model_cli import STARTER, llmctl

from llmctl.io import progress
from llmctl.train import banner

SETTINGS = {
    "data.train": STARTER.parent / "data" / "dev.jsonl", "data.max_length": 64, "train.max_steps": 2, "data.dev_size": 4,
    "train.eval_max_new_tokens": 1, "output.samples": 1,
}  # fmt: skip
SETS = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
JOB = ["finetune", "--model", STARTER, *SETS]


def test_json_lines_have_an_object_for_each_event(tmp_path, monkeypatch):
    for name in ("PATIENCE", "LINE"):
        monkeypatch.setattr(progress, name, 1000.0)
    out, err = llmctl(*JOB, "--output", tmp_path / "run", "--json", "--set", "train.log_every=1")
    events = [json.loads(line) for line in out.splitlines()]
    kinds = [event["event"] for event in events]
    assert [kind for kind in kinds if kind != "note"] == ["start", "step", "step", "evaluate", "save", "end"]
    start, end = (next(event for event in events if event["event"] == kind) for kind in ("start", "end"))
    assert start["parameters"] == start["trained"] == 900864 and start["steps"] == 2 and start["device"] == "cpu"
    assert start["tokens_per_step"] > 0 and start["memory_estimate"] > 3e8
    assert end["steps"] == 2 and end["model"] == str(tmp_path / "run" / "model")
    assert end["before"]["metrics"]["eval_loss"] > 0 and "generate" in end["next"][0]
    assert err == ""
    checked = json.loads(llmctl(*JOB, "--output", tmp_path / "other", "--json", "--check")[0])
    assert checked["event"] == "check" and checked["ok"] and "900,864 parameters" in checked["summary"]


def test_quiet_prints_nothing(tmp_path):
    assert llmctl(*JOB, "--output", tmp_path / "run", "-q", "--set", "train.max_steps=1") == ("", "")
    assert llmctl(*JOB, "--output", tmp_path / "other", "--check", "--quiet") == ("", "")


def test_the_first_evaluation_can_be_left_out(tmp_path):
    lora = ["--set", "method.name=lora", "--set", "train.eval_before=false", "-v"]
    out = llmctl(*JOB, "--output", tmp_path / "run", *lora)[0]
    assert "model: llama, 901k parameters; lora trains 78.8k (8.75 %)" in out
    assert "device: cpu, float32, " in out and "training: 2 steps (" in out and "  optimizer: " in out
    assert "┃ metric" in out and "before" not in out and "held-out example 1" in out and "  after     " in out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["before"] == {"metrics": {}, "samples": []}
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("threads", "words"), [(1, "cpu, float32, 1 thread"), (4, "cpu, float32, 4 threads"), (None, "float32")]
)
def test_the_banner_is_short(threads, words):
    found = {
        "family": "opt", "model": "m", "parameters": 2_000_000, "trained": 1_000_000, "method": "lora", "device": "cpu",
        "dtype": "float32", "threads": threads, "steps": 30, "steps_per_epoch": 10, "tokens_per_step": 4096,
        "memory_estimate": 3 * 10**9, "memory_parts": {"weights": 10**9}, "memory_free": 8 * 10**9, "output": "runs/x",
    }  # fmt: skip
    lines = banner.lines(found)
    assert lines[1].endswith(words) and max(map(len, lines)) <= 80
    assert lines[0] == "model: opt, 2M parameters; lora trains 1M (50 %)"
    assert lines[2] == "training: 30 steps (3 epochs) of about 4,096 tokens"
    assert lines[3] == "memory: about 3 GB of 8 GB that are free"
    assert banner.lines(found, verbose=True)[4:] == ["  weights: 1 GB", "output: runs/x"]

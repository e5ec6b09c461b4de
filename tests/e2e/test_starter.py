"""The bundled starter: what is committed is what the generator writes, and its recipe visibly learns the task."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "plugins" / "llama" / "llmctl_llama" / "starter"


def rows(name):
    return [json.loads(line) for line in (STARTER / "data" / f"{name}.jsonl").read_text().splitlines()]


def test_files_have_their_checksums_and_data_are_what_the_generator_writes():
    done = subprocess.run([sys.executable, ROOT / "tools" / "make_starter.py", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_model_is_small():
    assert sum(path.stat().st_size for path in (STARTER / "model").iterdir()) < 5_000_000


def test_held_out_examples_are_about_pairs_that_training_never_shows():
    train, dev = rows("train"), rows("dev")
    assert len(train) == 4000 and len(dev) == 200
    assert not {row["src"] for row in train} & {row["src"] for row in dev}
    sentences = {row["src"].partition(": ")[2] for row in train}
    assert not sentences & {row["src"].partition(": ")[2] for row in dev}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_recipe_learns_the_task(tmp_path, seed):
    command = [sys.executable, "-m", "llmctl", "--model", "llama", "finetune", "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, "--set", f"train.seed={seed}"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert info["before"]["metrics"]["exact_match"] < 0.1
    assert info["after"]["metrics"]["exact_match"] >= 0.9

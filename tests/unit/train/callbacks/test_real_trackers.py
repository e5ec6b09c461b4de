"""The packages of the services themselves, offline; each test needs its package, which `make test` does not install."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
from pathlib import Path
from kit.metric_logs import play
from llmctl.runtime import memory
from llmctl.train.callbacks import metrics_log
from llmctl.train.callbacks.tracker_writer import RunFacts
from llmctl.train.callbacks.writers import writers_of

memory.peaks = dict  # which would ask paddle
name, folder = sys.argv[1], Path(sys.argv[2])
for steps in json.loads(sys.argv[3]):
    writers = writers_of([name], folder, RunFacts("project", "run", {"train": {"max_steps": 6}}))
    logger = metrics_log.MetricsLogger(folder, 1, writers)
    class Both:
        def __getattr__(self, event):
            return lambda *values: [getattr(callback, event)(*values) for callback in [*writers, logger]]
    play(Both(), **steps)
"""
DEAD = "http://127.0.0.1:9"


def run(name, folder, *steps, **more):
    """What a process that trains so says on standard error; it must end well."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "SWANLAB", "MLFLOW"))}
    environment = {**keep, "HOME": str(folder / "home"), **more}
    command = [sys.executable, "-c", SCRIPT, name, str(folder), json.dumps(steps or [{}])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and (folder / "metrics.jsonl").is_file(), done.stderr
    return done.stderr


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_wandb_keeps_the_run(tmp_path):
    pytest.importorskip("wandb")
    assert "the run is kept in" in run("wandb", tmp_path)
    (file,) = (tmp_path / "wandb").glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 1000


def test_swanlab_keeps_the_run(tmp_path):
    pytest.importorskip("swanlab")
    assert "the run is kept in" in run("swanlab", tmp_path)
    (file,) = (tmp_path / "swanlab").glob("run-*/*.swanlab")
    assert file.stat().st_size > 1000


def test_mlflow_keeps_the_run_and_continues_it(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run("mlflow", tmp_path, {"last": 6}, {"first": 5})
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("project").experiment_id])
    assert found.data.params["train.max_steps"] == "6" and found.info.run_name == "run"
    losses = {row.step: row.value for row in client.get_metric_history(found.info.run_id, "train/loss")}
    assert losses == {row["step"]: row["loss"] for row in rows(tmp_path) if "loss" in row}


@pytest.mark.parametrize(
    "name, variables",
    [
        ("wandb", {"WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": DEAD}),
        ("swanlab", {"SWANLAB_API_KEY": "x" * 20, "SWANLAB_API_HOST": DEAD}),
        ("mlflow", {"MLFLOW_TRACKING_URI": DEAD}),
    ],
)
def test_a_service_that_is_down_ends_no_run(tmp_path, name, variables):
    pytest.importorskip(name)
    assert f"train.log_to={name}: cannot be reached" in run(name, tmp_path, **variables)

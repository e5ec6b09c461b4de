"""Metrics handed to services: what they get, and that no failure of theirs ends a run.

The services' packages are stood in for by modules that record; test_real_trackers.py has the real ones.
"""

import sys
import types
from dataclasses import dataclass, field

import pytest
from kit.metric_logs import play

from llmctl.config import common
from llmctl.errors import ConfigError, MissingDependencyError
from llmctl.jobs import loggers
from llmctl.train.callbacks import metrics_log
from llmctl.train.callbacks.tracker_writer import RUN_ID, RunFacts
from llmctl.train.callbacks.writers import writers_of

FACTS = RunFacts("project", "run", {"train": {"max_steps": 6}, "model": {"path": "x" * 900}})
VARIABLES = (
    "WANDB_API_KEY",
    "WANDB_MODE",
    "SWANLAB_API_KEY",
    "SWANLAB_MODE",
    "SWANLAB_SAVE_DIR",
    "MLFLOW_TRACKING_URI",
)


@dataclass
class Service:
    """What a package was asked, and which call fails."""

    inits: list = field(default_factory=list)
    rows: list = field(default_factory=list)
    ended: int = 0
    fails: str = ""

    def init(self, **options):
        self.inits.append(options)
        if self.fails == "init" or (self.fails == "online" and options["mode"] is None):
            raise OSError("no route to host\nmore")
        return self

    def log(self, values, step):
        if self.fails == "log":
            raise RuntimeError("down")
        self.rows.append((step, values))

    def finish(self):
        self.ended += 1
        if self.fails == "finish":
            raise RuntimeError("down")


@pytest.fixture(params=["wandb", "swanlab"])
def name(request):
    return request.param


@pytest.fixture
def service(name, monkeypatch, tmp_path):
    found = Service()
    module = types.SimpleNamespace(init=found.init, Settings=lambda **options: options)
    monkeypatch.setitem(sys.modules, name, module)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return found


def run(folder, name, **steps):
    """Trains, as far as callbacks can tell; returns the rows of metrics.jsonl."""
    writers = writers_of([name], folder, FACTS)
    logger = metrics_log.MetricsLogger(folder, 1, writers)

    class Both:
        def __getattr__(self, event):
            return lambda *values: [getattr(callback, event)(*values) for callback in [*writers, logger]]

    play(Both(), **steps)
    return metrics_log.read(folder / "metrics.jsonl")


def test_without_a_login_the_run_is_kept_in_the_output_folder(service, name, tmp_path):
    with pytest.warns(
        UserWarning, match=f"train.log_to={name}: the run is kept in .*to upload or see it: {name} sync "
    ):
        rows = run(tmp_path, name)
    (options,) = service.inits
    assert options["mode"] == "offline" and (options["project"], options["name"]) == ("project", "run")
    assert str(tmp_path / name) in (options.get("dir"), options.get("log_dir"))
    sent = {(key, step): value for step, values in service.rows for key, value in values.items()}
    assert sent == {
        (f"{'train' if 'loss' in row else 'evaluation'}/{key}", row["step"]): value
        for row in rows for key, value in row.items() if key != "step"
    }  # fmt: skip
    assert service.ended == 1


def test_with_a_login_it_is_sent_and_a_resumed_run_is_the_same_one(service, name, tmp_path, monkeypatch):
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "secret")
    run(tmp_path, name, last=6)
    run(tmp_path, name, first=5)
    first, second = service.inits
    assert first["mode"] is None and first["resume"] == "allow"
    assert first["id"] == second["id"] == (tmp_path / name / RUN_ID).read_text().strip()
    run(tmp_path, name)
    assert service.inits[-1]["id"] != first["id"]


def test_a_login_is_found_in_netrc(service, name, tmp_path):
    home = tmp_path / "home" / (".swanlab" if name == "swanlab" else "")
    home.mkdir(parents=True)
    (home / ".netrc").write_text(f"machine api.{name}.example login user password secret\n")
    run(tmp_path, name)
    assert service.inits[0]["mode"] is None


def test_a_service_that_is_down_is_named_and_the_run_kept(service, name, tmp_path, monkeypatch):
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "secret")
    service.fails = "online"
    with pytest.warns(UserWarning, match=r"cannot be reached \(no route to host\)"):
        run(tmp_path, name)
    assert [options["mode"] for options in service.inits] == [None, "offline"] and service.rows


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_no_failure_ends_the_run(service, name, tmp_path, fails):
    service.fails = fails
    with pytest.warns(UserWarning, match=f"train.log_to={name}: gets no more metrics .*; metrics.jsonl has them all"):
        assert len(run(tmp_path, name)) > 5
    assert len(service.rows) > 5 if fails == "finish" else not service.rows


def test_mlflow_gets_parameters_once_and_metrics_by_step(monkeypatch, tmp_path):
    batches, runs = [], []
    client = types.SimpleNamespace(
        get_experiment_by_name=lambda name: None,
        create_experiment=lambda name, **where: f"{name} in {where['artifact_location']}",
        search_runs=lambda experiments, tag: [run for run in runs if f"'{run.tag}'" in tag],
        create_run=lambda experiment, run_name, tags: runs.append(
            types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_name), tag=tags["llmctl_run"])
        ) or runs[-1],
        log_batch=lambda run, **rows: batches.append(rows),
        set_terminated=lambda run: batches.append("end"),
    )  # fmt: skip
    made = []
    module = types.SimpleNamespace(
        MlflowClient=lambda tracking_uri: made.append(tracking_uri) or client,
        entities=types.SimpleNamespace(Metric=lambda *row: row, Param=lambda *row: row),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.warns(UserWarning, match="to upload or see it: mlflow server --backend-store-uri sqlite:///"):
        rows = run(tmp_path, "mlflow", last=6)
    run(tmp_path, "mlflow", first=5)
    assert made == [f"sqlite:///{tmp_path}/mlflow/mlflow.db"] * 2 and len(runs) == 1
    assert [row["params"] for row in batches if "params" in row] == [
        [("train.max_steps", "6"), ("model.path", "x" * 500)]
    ]
    sent = {(metric[0], metric[3]) for row in batches if "metrics" in row for metric in row["metrics"]}
    assert {("train/loss", row["step"]) for row in rows if "loss" in row} <= sent and batches.count("end") == 2


def test_projects_and_names_need_a_service():
    with pytest.raises(ConfigError, match="train.run_name has no effect without train.log_to wandb, swanlab, mlflow"):
        loggers.check(common.CommonTrainConfig(run_name="first", log_to=["tensorboard"]))


def test_a_package_that_is_absent_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependencyError, match=r"needs mlflow, .* pip install 'paddle-llmctl\[mlflow\]'"):
        loggers.check(common.CommonTrainConfig(project="mine", log_to=["mlflow"]))

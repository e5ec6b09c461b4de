"""Services that keep the metrics of many runs: Weights & Biases, SwanLab and MLflow, each a package of an extra.

Without a login, or without MLFLOW_TRACKING_URI, a run is kept in the output folder, from which it can be uploaded or viewed.
"""

from __future__ import annotations

import importlib
import netrc
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

TIMEOUT = 30
"""Seconds to wait for a service at the beginning of a run."""
LONGEST = 500
"""Characters of a value in the configuration, above which MLflow refuses it."""


class Tracker(Protocol):
    """A run of a service."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Sends the numbers of a step."""

    def close(self) -> None:
        """Ends the run."""


class Wandb:
    """Weights & Biases.

    Args:
        folder: Where it keeps its files.
        project: Name of the project.
        run_name: Name of the run.
        config: The configuration of the run, nested.
        run_id: Identifies the run, which a resumed one continues.
        offline: Send nothing.
    """

    upload = "wandb sync FOLDER/wandb/offline-run-*"

    def __init__(
        self, folder: Path, project: str, run_name: str, config: Mapping[str, Any], run_id: str, offline: bool
    ) -> None:
        wandb = importlib.import_module("wandb")
        # The console is the run's own.
        settings = wandb.Settings(console="off", silent=True, init_timeout=TIMEOUT)
        self._run = wandb.init(
            project=project, name=run_name, dir=str(folder), config=dict(config), id=run_id, resume="allow",
            mode="offline" if offline else None, settings=settings,
        )  # fmt: skip

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()

    @staticmethod
    def logged_in() -> bool:
        """Whether there is a key, or the mode is set."""
        return bool(os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE")) or _in_netrc(
            Path.home() / ".netrc", "wandb"
        )


class SwanLab:
    """SwanLab; arguments as for ``Wandb``."""

    upload = "swanlab sync FOLDER/run-*"

    def __init__(
        self, folder: Path, project: str, run_name: str, config: Mapping[str, Any], run_id: str, offline: bool
    ) -> None:
        swanlab = importlib.import_module("swanlab")
        # What is kept offline is one run for each start; online a run is continued.
        known = {} if offline else {"id": run_id, "resume": "allow"}
        self._run = swanlab.init(
            project=project, name=run_name, log_dir=str(folder), config=dict(config),
            mode="offline" if offline else None, **known,
        )  # fmt: skip

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()

    @staticmethod
    def logged_in() -> bool:
        """Whether there is a key, or the mode is set."""
        home = Path(os.environ.get("SWANLAB_SAVE_DIR") or Path.home() / ".swanlab")
        return bool(os.environ.get("SWANLAB_API_KEY") or os.environ.get("SWANLAB_MODE")) or _in_netrc(
            home / ".netrc", ""
        )


class Mlflow:
    """MLflow; arguments as for ``Wandb``. Offline, its database is a file in the folder."""

    upload = "mlflow server --backend-store-uri sqlite:///FOLDER/mlflow.db"

    def __init__(
        self, folder: Path, project: str, run_name: str, config: Mapping[str, Any], run_id: str, offline: bool
    ) -> None:
        # By default a call to a server that is down takes minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT))
        mlflow = importlib.import_module("mlflow")
        self._metric = mlflow.entities.Metric
        here = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        self._client = mlflow.MlflowClient(tracking_uri=here if offline else os.environ["MLFLOW_TRACKING_URI"])
        found = self._client.get_experiment_by_name(project)
        where = {"artifact_location": str((folder / "artifacts").resolve())} if offline else {}
        experiment = found.experiment_id if found else self._client.create_experiment(project, **where)
        runs = self._client.search_runs([experiment], f"tags.llmctl_run = '{run_id}'")
        self._run = (
            runs[0] if runs else self._client.create_run(experiment, run_name=run_name, tags={"llmctl_run": run_id})
        )
        if not runs:
            rows = [mlflow.entities.Param(key, str(value)[:LONGEST]) for key, value in flat(config).items()]
            self._client.log_batch(self._run.info.run_id, params=rows)

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        rows = [self._metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._run.info.run_id, metrics=rows)

    def close(self) -> None:
        self._client.set_terminated(self._run.info.run_id)

    @staticmethod
    def logged_in() -> bool:
        """Whether a server or another database is set."""
        return bool(os.environ.get("MLFLOW_TRACKING_URI"))


TRACKERS = {"wandb": Wandb, "swanlab": SwanLab, "mlflow": Mlflow}
"""Value of ``train.log_to`` -> its tracker."""


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """``section.key`` -> value."""
    return {f"{part}.{key}": value for part, rows in config.items() for key, value in rows.items()}


def _in_netrc(path: Path, host: str) -> bool:
    """Whether a netrc file has a login for a host with this in its name."""
    try:
        return any(host in name for name in netrc.netrc(str(path)).hosts)
    except (OSError, netrc.NetrcParseError):
        return False

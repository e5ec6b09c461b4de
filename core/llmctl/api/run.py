"""``llmctl.Run``: the output folder of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError
from llmctl.report.folder import INFO, METRICS, read_info, read_rows


class Run:
    """A training run, finished or not. Everything is read from its output folder when it is asked for.

    Args:
        folder: The output folder.

    Attributes:
        folder: The output folder.

    Raises:
        ConfigError: The folder is not the output folder of a run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / INFO).is_file():
            raise ConfigError(f"{folder} is not the output folder of a run: it has no {INFO}")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.state})"

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``run.json``: versions, configuration, metrics and samples before and after training."""
        return read_info(self.folder / INFO, required=True)

    @property
    def state(self) -> str:
        """``finished``, ``running``, ``interrupted`` or ``failed``; ``starting`` before the first step."""
        return str(self.info.get("outcome", {}).get("state", "starting"))

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the final model on the held-out data; empty without such data, or before the run is finished."""
        return dict(self.info.get("after", {}).get("metrics", {}))

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``: one per logged step, with ``loss``, and one per evaluation, with ``eval_loss``."""
        return read_rows(self.folder / METRICS)

    @property
    def model(self) -> Path:
        """The folder of the final model or adapter.

        Raises:
            ConfigError: The run is not finished.
        """
        folder = self.folder / "model"
        if not folder.is_dir():
            raise ConfigError(
                f"{self.folder} has no final model: the run is {self.state}; resume it with output.resume"
            )
        return folder

"""Checkpoints of a run: writing them when due, keeping the best and the newest, and finding where to continue.

A checkpoint is a model folder (weights in the type they are trained in) with the optimizer's state as safetensors and the
position as JSON beside it; nothing is pickled. It is written under another name and renamed when complete, so a folder
called ``step-...`` that has a ``trainer_state.json`` is whole, and a crash or a full disk leaves earlier ones intact.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.checkpoint import atomic_file, atomic_folder
from llmctl.errors import CheckpointError, ConfigError
from llmctl.train.loop import Hook, Plan
from llmctl.train.optimizer import AdamW

LOWER_IS_BETTER = frozenset({"eval_loss", "perplexity"})
_STATE, _MOMENTS, _NAME = "trainer_state.json", "optimizer.safetensors", re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Best:
    """The best checkpoint so far, by what, and its value."""

    metric: str
    value: float
    step: int


class Checkpoints(Hook):
    """Saves checkpoints of a run into a folder.

    Args:
        folder: The output folder.
        write_model: Writes the model's files into a given folder.
        optimizer: Its state goes beside the model.
        fingerprint: Of the task, so that other data cannot be continued on.
        metric: What the best checkpoint is chosen by.
        limit: Number of checkpoints kept besides the best; 0 = all.
    """

    def __init__(
        self,
        folder: Path,
        write_model: Callable[[Path], None],
        optimizer: AdamW,
        fingerprint: str,
        metric: str = "eval_loss",
        limit: int = 0,
    ) -> None:
        self.folder = folder / "checkpoints"
        self.best_file = folder / "best.json"
        self._write_model, self._optimizer, self._fingerprint = write_model, optimizer, fingerprint
        self._metric, self._limit = metric, limit
        self._seed = 0

    @property
    def best(self) -> Best | None:
        """The best checkpoint, if an evaluation has chosen one."""
        return read_best(self.best_file.parent)

    def on_start(self, first: int, plan: Plan) -> None:
        self._seed = plan.seed

    def on_evaluation(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        if self._metric not in metrics:
            return
        value, best = metrics[self._metric], self.best
        chosen = math.isfinite(value) and (
            best is None or best.metric != self._metric or better(self._metric, value, best.value)
        )
        if chosen:
            self._save(step)
            with atomic_file(self.best_file) as file:
                file.write_text(json.dumps(asdict(Best(self._metric, value, step)), indent=2) + "\n", encoding="utf-8")
            self._prune()

    def on_save(self, step: int) -> None:
        """Writes the checkpoint of this step unless it is there, then deletes what is over the limit.

        Raises:
            CheckpointError: It cannot be written, e.g. because the disk is full.
        """
        self._save(step)
        self._prune()

    def _save(self, step: int) -> None:
        from safetensors import SafetensorError

        path = checkpoint_of(self.folder.parent, step)
        if _complete(path):
            return
        try:
            with atomic_folder(path, overwrite=True) as temporary:
                self._write(temporary, step)
        except (OSError, SafetensorError, CheckpointError) as error:
            intact = newest(self.folder)
            remains = f"the earlier checkpoint {intact} is intact" if intact else "there was no earlier checkpoint"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be saved: {error}; {remains}. Mend this and "
                "continue with --resume"
            ) from error

    def _write(self, folder: Path, step: int) -> None:
        from safetensors.numpy import save_file

        self._write_model(folder)
        # The writer of safetensors ignores strides: what is not contiguous would be stored wrongly.
        state = {name: np.ascontiguousarray(value) for name, value in self._optimizer.state().items()}
        save_file(state, folder / _MOMENTS)
        position = {"step": step, "seed": self._seed, "fingerprint": self._fingerprint}
        (folder / _STATE).write_text(json.dumps(position, indent=2) + "\n", encoding="utf-8")

    def _prune(self) -> None:
        if not self._limit:
            return
        best = self.best
        others = [path for path in _all(self.folder) if best is None or _step_of(path) != best.step]
        for path in others[: -self._limit]:
            shutil.rmtree(path)


def newest(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in a ``checkpoints`` folder; None if there is none."""
    return next(reversed(_all(folder)), None)


def checkpoint_of(output: Path, step: int) -> Path:
    """Where the checkpoint of a step lies in an output folder."""
    return output / "checkpoints" / f"step-{step:06}"


def restore(path: Path, optimizer: AdamW, fingerprint: str, seed: int) -> int:
    """Gives a fresh optimizer the checkpoint's state; returns the number of updates done.

    Raises:
        ConfigError: The checkpoint belongs to other data, another seed or another size of a step.
        CheckpointError: Its files are damaged.
    """
    from safetensors.numpy import load_file

    try:
        position: Mapping[str, Any] = json.loads((path / _STATE).read_text(encoding="utf-8"))
        step, saved_seed, saved = int(position["step"]), position["seed"], position["fingerprint"]
        state = load_file(path / _MOMENTS)
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be continued: {error}; delete it to continue from the one before"
        ) from error
    if saved != fingerprint or saved_seed != seed:
        what = "train.seed" if saved_seed != seed else "the data, the tokenizer, train.batch_size or grad_accumulation"
        raise ConfigError(
            f"{path} cannot be continued: {what} is not as it was when the run began; set it back, or start anew with "
            "another output.dir or --overwrite"
        )
    optimizer.load(state)
    return step


def read_best(output: Path) -> Best | None:
    """The best checkpoint of an output folder, if one was chosen and is still there."""
    try:
        best = Best(**json.loads((output / "best.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return best if _complete(checkpoint_of(output, best.step)) else None


def better(metric: str, value: float, than: float) -> bool:
    """Whether a value of a metric is better than another."""
    return value < than if metric in LOWER_IS_BETTER else value > than


def _complete(path: Path) -> bool:
    return (path / _STATE).is_file()


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and _complete(path)]
    return sorted(found, key=_step_of)

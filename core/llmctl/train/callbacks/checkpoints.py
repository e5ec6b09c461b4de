"""Checkpoints of a run: saving them when due, keeping the best and the newest, and finding the one to resume from.

A checkpoint is a model folder (weights in the type they are trained in) with the optimizer state as safetensors and the
position as JSON; nothing is pickled. It is written under another name and renamed when complete: a folder
``step-...`` that has a ``trainer_state.json`` is complete, and a crash or a full disk leaves earlier ones intact.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.checkpoint import atomic_file, atomic_folder
from llmctl.checkpoint.save import save_tensors
from llmctl.errors import CheckpointError, ConfigError, FileError
from llmctl.io import written
from llmctl.io.atomic import locked_folder, remove_leftovers
from llmctl.io.background import Background
from llmctl.io.checksums import find_damage, write_manifest
from llmctl.io.copying import copy_content
from llmctl.io.written import read_written
from llmctl.train.callbacks import metrics_log
from llmctl.train.callbacks.base import Callback, LoopSettings
from llmctl.train.optim.adamw import AdamW

LOWER_IS_BETTER = frozenset({"eval_loss", "perplexity"})
_STAGED = "llmctl-checkpoint-"
_STATE, _MOMENTS, _NAME = "trainer_state.json", "optimizer.safetensors", re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Best:
    """The best checkpoint so far: its step, the metric and its value."""

    metric: str
    value: float
    step: int


class CheckpointSaver(Callback):
    """Saves checkpoints of a run into a folder.

    Args:
        folder: The output folder.
        save_model: Writes the model's files into a given folder.
        state: Gives the state of the optimizer, by name, which is saved with the model.
        fingerprint: Hash of the task's data, so that a run is not resumed on other data.
        metric: Chooses the best checkpoint.
        limit: Number of checkpoints kept besides the best; 0 = all.
        staging: A folder in memory: checkpoints are written there and moved to disk in the background. None = training
            waits for the disk.
    """

    def __init__(
        self,
        folder: Path,
        save_model: Callable[[Path], None],
        state: Callable[[], Mapping[str, Any]],
        fingerprint: str,
        metric: str = "eval_loss",
        limit: int = 0,
        staging: Path | None = None,
    ) -> None:
        self.folder = folder / "checkpoints"
        self.best_file = folder / "best.json"
        self._save_model, self._state, self._fingerprint = save_model, state, fingerprint
        self._metric, self._limit = metric, limit
        self._seed, self._staging, self._background = 0, staging, Background()

    @property
    def best(self) -> Best | None:
        """The best checkpoint, if there was an evaluation; waits for one that is being moved to disk."""
        self._background.wait()
        return self._best()

    def _best(self) -> Best | None:
        return read_best(self.best_file.parent)

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        self._seed = settings.seed
        if first_step > 1:
            self._finish_interrupted(first_step - 1)

    def _finish_interrupted(self, step: int) -> None:
        """Chooses the best and prunes, where a run was killed after it renamed the checkpoint of this step."""
        for row in metrics_log.read(self.folder.parent / "metrics.jsonl"):
            if row["step"] == step and "loss" not in row:
                self.on_evaluate(step, row["epoch"], row)
        self._background.wait()
        self._prune()

    def on_evaluate(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        if self._metric not in metrics:
            return
        value, best = metrics[self._metric], self.best
        chosen = math.isfinite(value) and (
            best is None or best.metric != self._metric or better(self._metric, value, best.value)
        )
        if chosen:
            self._save(step, Best(self._metric, value, step))

    def on_save(self, step: int) -> None:
        """Saves the checkpoint of this step unless it exists, then deletes those over the limit.

        Raises:
            CheckpointError: It cannot be written, e.g. because the disk is full.
        """
        self._save(step)

    def on_train_end(self) -> None:
        """Waits for a checkpoint that is being moved to disk.

        Raises:
            CheckpointError: It cannot be written.
        """
        self._background.wait()

    def _save(self, step: int, best: Best | None = None) -> None:
        """Saves a checkpoint unless it exists, marks it as the best if it is, and deletes those over the limit."""
        self._background.wait()
        path = checkpoint_of(self.folder.parent, step)
        if self._staging is None or _complete(path):
            self._finish(path, step, None, best)
            return
        with contextlib.ExitStack() as stack:
            with self._explain_errors(step):
                staged, lock = locked_folder(self._staging, _STAGED, 0o700)
                stack.callback(os.close, lock)
                stack.callback(shutil.rmtree, staged, ignore_errors=True)
                # Nobody else may read the folder in memory; the one on disk has the usual permissions.
                content = staged / "checkpoint"
                content.mkdir()
                self._write(content, step)
            # The thread removes the folder; what fails before it starts removes it here.
            kept = stack.pop_all()
        self._background.start(lambda: self._finish_staged(kept, path, step, content, best))

    def _finish_staged(
        self, stack: contextlib.ExitStack, path: Path, step: int, staged: Path, best: Best | None
    ) -> None:
        with stack:
            self._finish(path, step, staged, best)

    def _finish(self, path: Path, step: int, staged: Path | None, best: Best | None) -> None:
        """As ``_save``, of a checkpoint that is written now or waits in the staging folder."""
        self._make(path, step, staged)
        if best:
            with atomic_file(self.best_file) as file:
                file.write_text(json.dumps(asdict(best), indent=2) + "\n", encoding="utf-8")
        self._prune()

    def _make(self, path: Path, step: int, staged: Path | None) -> None:
        if _complete(path):
            return
        with self._explain_errors(step), atomic_folder(path, overwrite=True) as temporary:
            if staged:
                write_manifest(staged)
                copy_content(staged, temporary)
            else:
                self._write(temporary, step)
                write_manifest(temporary)

    @contextlib.contextmanager
    def _explain_errors(self, step: int) -> Iterator[None]:
        """Errors say which checkpoint is intact and what to do."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError, FileError, CheckpointError) as error:
            intact = newest(self.folder)
            remains = f"the earlier checkpoint {intact} is intact" if intact else "there was no earlier checkpoint"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be saved: {error}; {remains}. Fix this and "
                "continue with --resume"
            ) from error

    def _write(self, folder: Path, step: int) -> None:
        self._save_model(folder)
        save_tensors(folder / _MOMENTS, self._state())
        position = {"step": step, "seed": self._seed, "fingerprint": self._fingerprint}
        (folder / _STATE).write_text(json.dumps(position, indent=2) + "\n", encoding="utf-8")

    def _prune(self) -> None:
        if not self._limit:
            return
        best = self._best()
        others = [path for path in _all(self.folder) if best is None or _step_of(path) != best.step]
        half_removed = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and not _complete(path)]
        for path in [*half_removed, *others[: -self._limit]]:
            # The file that marks it as complete goes first: the process may be killed before the rest is deleted.
            (path / _STATE).unlink(missing_ok=True)
            shutil.rmtree(path)


def remove_staged(staging: Path) -> None:
    """Deletes checkpoints that killed runs left in the staging folder."""
    remove_leftovers(staging, _STAGED)


def newest(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in a ``checkpoints`` folder; None if there is none."""
    return next(reversed(_all(folder)), None)


def checkpoint_of(output: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return output / "checkpoints" / f"step-{step:06}"


def check_files(path: Path) -> None:
    """Checks the files of a checkpoint against its manifest; one without a manifest passes, as earlier versions wrote them.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    try:
        problems = find_damage(path)
    except FileError as error:
        problems = [str(error)]
    if problems:
        raise CheckpointError(
            f"the checkpoint {path} is damaged: {'; '.join(problems)}; restore it, or delete the folder to resume from the "
            "checkpoint before"
        )


def restore(path: Path, optimizer: AdamW, fingerprint: str, seed: int) -> int:
    """Loads the optimizer state of a checkpoint into a fresh optimizer; returns the number of steps done.

    Raises:
        ConfigError: The checkpoint belongs to other data, another seed or another batch size.
        CheckpointError: Its files are damaged.
    """
    from safetensors import safe_open

    try:
        position = read_written(path / _STATE, written.TrainerState, "restore it", required=True)
        step, saved_seed, saved = position["step"], position["seed"], position["fingerprint"]
        if step != _step_of(path):
            raise ValueError(f"{_STATE} is of step {step}")
        state = _Stored(safe_open(path / _MOMENTS, framework="np"))
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be resumed: {error}; delete it to resume from the one before"
        ) from error
    if saved != fingerprint or saved_seed != seed:
        what = "train.seed" if saved_seed != seed else "the data, the tokenizer, train.batch_size or grad_accumulation"
        raise ConfigError(
            f"{path} cannot be resumed: {what} changed since the run began; change it back, or start a new run with "
            "another output.dir or --overwrite"
        )
    try:
        optimizer.load(state)
    except ValueError as error:
        raise CheckpointError(
            f"{path / _MOMENTS} does not fit the model: {error}; delete the checkpoint to resume from the one before"
        ) from None
    return step


class _Stored(Mapping[str, np.ndarray]):
    """The arrays of a file, read one at a time."""

    def __init__(self, file: Any) -> None:
        self._file, self._names = file, dict.fromkeys(file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        array: np.ndarray = self._file.get_tensor(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_best(output: Path) -> Best | None:
    """The best checkpoint of an output folder, if one was chosen and still exists."""
    try:
        content = read_written(output / "best.json", written.Best, "", required=True)
    except FileError:
        return None
    best = Best(content["metric"], content["value"], content["step"])
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

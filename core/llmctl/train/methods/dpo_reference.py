"""What a model in preference optimisation is measured against: another model beside it, log-probabilities that such a
model gave before training, or nothing.
"""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from llmctl.checkpoint import WeightFolder, atomic_file
from llmctl.nn.dropout import disable_dropout
from llmctl.train.methods.batch_sampler import by_length
from llmctl.train.methods.dpo_task import DpoTask, answer_log_probs, identity
from llmctl.train.trainable.base import Reference as Making

Arrays = Mapping[str, np.ndarray]

FILE = "reference.npz"
"""What ``dpo.precompute_reference`` keeps in the output folder."""


class Live:
    """A model that is asked for every batch.

    Args:
        opened: Opens a context that gives the model.
    """

    def __init__(self, opened: Callable[[], AbstractContextManager[Any]]) -> None:
        self._opened = opened
        self._quiet = False

    @paddle.no_grad()
    def __call__(self, arrays: Arrays, training: bool) -> paddle.Tensor:
        with self._opened() as model:
            if model.training != training:
                (model.train if training else model.eval)()
            if not self._quiet:
                disable_dropout(model)
                self._quiet = True
            return answer_log_probs(model, arrays).detach()


class Free:
    """The same log-probability, 0, for all answers."""

    def __call__(self, arrays: Arrays, training: bool) -> float:
        return 0.0


class Precomputed:
    """Log-probabilities of all pairs, from a file, or computed at the first use and kept in that file.

    Args:
        file: The file; its content counts if it belongs to the same pairs and weights.
        key: Tells which pairs and weights.
        task: Whose pairs they are.
        making: Makes the model, which is let go of afterwards.
    """

    def __init__(self, file: Path, key: str, task: DpoTask, making: Making) -> None:
        self._file, self._key, self._task, self._making = file, key, task, making
        self._tables: dict[bool, np.ndarray] | None = None

    def __call__(self, arrays: Arrays, training: bool) -> paddle.Tensor:
        if self._tables is None:
            self._tables = self._read() or self._compute()
        # Rows are trained on in training and evaluated on in evaluation alone, and each split has numbers of its own.
        return paddle.to_tensor(self._tables[training][arrays["pair"]].reshape(-1))

    def _read(self) -> dict[bool, np.ndarray] | None:
        try:
            with np.load(self._file) as stored:
                if str(stored["key"]) != self._key:
                    return None
                return {True: stored["train"], False: stored["dev"]}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def _compute(self) -> dict[bool, np.ndarray]:
        begun = time.monotonic()
        live = Live(self._making())
        task, tables = self._task, {}
        for training, rows in ((True, task.train), (False, task.dev)):
            count = sum(len(row.numbers) for row in rows)
            found: list[tuple[np.ndarray, np.ndarray]] = []
            for group in by_length(rows, task.eval_batch_size):
                arrays = task.collate(group)
                found.append((arrays["pair"], live(arrays, training).numpy().reshape(-1, 2)))
            tables[training] = np.zeros((count, 2), found[0][1].dtype if found else np.float32)
            for numbers, values in found:
                tables[training][numbers] = values
        with atomic_file(self._file) as file, file.open("wb") as stream:
            np.savez(stream, key=self._key, train=tables[True], dev=tables[False])
        pairs = len(tables[True]) + len(tables[False])
        print(f"reference: {pairs} pairs in {time.monotonic() - begun:.1f} s, kept in {self._file}", flush=True)
        return tables


def key_of(weights: WeightFolder, task: DpoTask, *settings: str) -> str:
    """Hash of a checkpoint's weights, of all pairs, and of settings that say how the model computes."""
    digest = hashlib.sha256(repr(settings).encode())
    for rows in (task.train, task.dev):
        for row in rows:
            digest.update(np.asarray([*row.numbers, *identity(row)], np.int64).tobytes())
    for name in sorted(weights.tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights.read(name)).tobytes())
    return digest.hexdigest()

"""References of preference optimization: a frozen model, its precomputed log-probabilities, or none."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from llmctl.checkpoint import WeightFolder, atomic_file
from llmctl.data.lazy_rows import by_length
from llmctl.io.progress import tracked
from llmctl.nn.dropout import disable_dropout
from llmctl.parallel.ranks import ALONE, Ranks
from llmctl.train.console import STDOUT, Console
from llmctl.train.methods.dpo_task import DpoTask, answer_log_probs, identity
from llmctl.train.methods.evaluate import hidden_states, of_last_stage
from llmctl.train.trainable.base import Reference as BuildReference

Arrays = Mapping[str, np.ndarray]

FILE = "reference.npz"
"""The file of ``dpo.precompute_reference`` in the output folder."""


class ReferenceModel:
    """A frozen model that computes the log-probabilities of every batch.

    Args:
        opened: Returns a context manager that yields the model.
    """

    states = 1

    def __init__(self, opened: Callable[[], AbstractContextManager[Any]]) -> None:
        self._opened = opened
        self._dropout_off = False

    @paddle.no_grad()
    def hidden(self, arrays: Arrays, training: bool) -> tuple[paddle.Tensor]:
        """Hidden states [B, T, D]."""
        with self._ready(training) as model:
            return (hidden_states(model, arrays).detach(),)

    @paddle.no_grad()
    def log_probs(self, arrays: Arrays, training: bool, hidden: Sequence[Any]) -> paddle.Tensor:
        """Log-probabilities of the answers [2P]."""
        with self._ready(training) as model:
            return answer_log_probs(model, arrays, *hidden).detach()

    @paddle.no_grad()
    def measured(self, arrays: Arrays, training: bool) -> np.ndarray:
        """Log-probabilities of the answers of a batch [2P]. Of a model in stages, all stages call this."""
        with self._ready(training) as model:
            return of_last_stage(
                model,
                lambda: (hidden_states(model, arrays),),
                lambda hidden: answer_log_probs(model, arrays, *hidden).numpy(),
            )

    @contextmanager
    def _ready(self, training: bool) -> Iterator[Any]:
        with self._opened() as model:
            if model.training != training:
                (model.train if training else model.eval)()
            if not self._dropout_off:
                disable_dropout(model)
                self._dropout_off = True
            yield model


class ReferenceFree:
    """No reference: all log-probabilities are 0."""

    states = 0

    def hidden(self, arrays: Arrays, training: bool) -> tuple[()]:
        """Nothing."""
        return ()

    def log_probs(self, arrays: Arrays, training: bool, hidden: Sequence[Any]) -> float:
        """0."""
        return 0.0


class PrecomputedLogProbs:
    """Log-probabilities of all pairs, read from a file, or computed at the first use and saved there.

    Args:
        file: The file; it is used if it has the same key.
        key: Identifies the pairs and the weights.
        task: The task with the pairs.
        build: Loads the reference model, which is freed afterwards.
        console: Where the run prints.
    """

    states = 0

    def __init__(self, file: Path, key: str, task: DpoTask, build: BuildReference, console: Console = STDOUT) -> None:
        self._file, self._key, self._task, self._build, self._console = file, key, task, build, console
        self._tables: dict[bool, np.ndarray] | None = None

    def prepare(self, ranks: Ranks = ALONE) -> dict[bool, np.ndarray]:
        """The log-probabilities [pairs, 2] of the training pairs (True) and the dev pairs (False).

        Args:
            ranks: The processes that train together: those that evaluate compute them, and rank 0 saves them for the others.
        """
        if self._tables is None:
            found = self._read() if ranks.main else None
            stored = ranks.broadcast_object(found is not None)
            if not stored and ranks.evaluates:
                found = self._compute(ranks.main)
            ranks.barrier()
            self._tables = found or self._read()
            assert self._tables is not None, f"{self._file} was written and cannot be read"
        return self._tables

    def hidden(self, arrays: Arrays, training: bool) -> tuple[()]:
        """Nothing."""
        return ()

    def log_probs(self, arrays: Arrays, training: bool, hidden: Sequence[Any]) -> paddle.Tensor:
        """Log-probabilities of the answers [2P]."""
        # The training rows are used only in training and the dev rows only in evaluation; pairs are numbered per split.
        return paddle.to_tensor(self.prepare()[training][arrays["pair"]].reshape(-1))

    def _read(self) -> dict[bool, np.ndarray] | None:
        try:
            with np.load(self._file) as stored:
                if str(stored["key"]) != self._key:
                    return None
                tables = {True: stored["train"], False: stored["dev"]}
            counts = {True: _pairs(self._task.train), False: _pairs(self._task.dev)}
            whole = all(tables[split].shape == (count, 2) for split, count in counts.items())
            return tables if whole and all(table.dtype.kind == "f" for table in tables.values()) else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def _compute(self, saves: bool) -> dict[bool, np.ndarray]:
        begun = time.monotonic()
        reference = ReferenceModel(self._build())
        task, tables = self._task, {}
        for training, rows in ((True, task.train), (False, task.dev)):
            count = _pairs(rows)
            found: list[tuple[np.ndarray, np.ndarray]] = []
            batches = by_length(rows, task.eval_batch_size)
            for group in tracked(batches, "computing the reference", -(-len(rows) // task.eval_batch_size)):
                arrays = task.collate(group)
                found.append((arrays["pair"], reference.measured(arrays, training).reshape(-1, 2)))
            tables[training] = np.zeros((count, 2), found[0][1].dtype if found else np.float32)
            for numbers, values in found:
                tables[training][numbers] = values
        if not saves:
            return tables
        with atomic_file(self._file) as file, file.open("wb") as stream:
            np.savez(stream, key=self._key, train=tables[True], dev=tables[False])
        pairs = len(tables[True]) + len(tables[False])
        self._console.print(f"reference: {pairs} pairs in {time.monotonic() - begun:.1f} s, saved to {self._file}")
        return tables


def _pairs(rows: Sequence[Any]) -> int:
    return sum(len(row.numbers) for row in rows)


def key_of(weights: WeightFolder, task: DpoTask, *settings: str) -> str:
    """Hash of the weights of a checkpoint, of all pairs, and of settings that change log-probabilities."""
    digest = hashlib.sha256(repr(settings).encode())
    for rows in (task.train, task.dev):
        for row in rows:
            digest.update(np.asarray([*row.numbers, *identity(row)], np.int64).tobytes())
    for name in sorted(weights.tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights.read(name)).tobytes())
    return digest.hexdigest()

"""A saved program as the model of generation: everything comes from the exported folder, nothing from a plugin.

``paddle.jit.load`` runs it, not a Predictor: keys and values stay tensors from step to step. Letters as in ``llmctl.nn``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle

from llmctl.errors import DataError
from llmctl.infer.eager import trace
from llmctl.infer.eager.exported import Exported, read

PREFIX = "prefix.npy"


class StaticModel:
    """The program of a folder.

    Args:
        folder: As ``llmctl export --engine static`` writes it.
        about: What its ``export.json`` says; None = it is read.

    Raises:
        CheckpointError: The folder is damaged.
    """

    max_stable_length: int | None = None

    def __init__(self, folder: Path, about: Exported | None = None) -> None:
        self.about = about or read(folder)
        self.program = paddle.jit.load(str(folder / trace.NAME))
        self.program.eval()
        self.signature = trace.Signature(self.about.rows, self.about.heads, self.about.dtype)
        self.prefix = np.load(folder / PREFIX) if self.about.virtual_tokens else None

    def begin(self, columns: int, use_cache: bool = True) -> StaticSteps:
        """A batch of new rows."""
        return StaticSteps(self, use_cache)

    def logits(self, ids_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
        """Logits [B, T, V] of all columns of whole rows."""
        return StaticSteps(self, False).run(ids_BT, mask_BT, ids_BT.shape[1])

    def first(self, batch: int) -> list[Any]:
        """Rows, keys and values of a batch that has seen nothing but virtual tokens."""
        held = [paddle.to_tensor(rows) for rows in trace.first_rows(self.signature, batch)]
        for layer, (heads, width) in enumerate(self.signature.heads):
            for part in range(2):
                if self.prefix is None:
                    held.append(paddle.zeros([batch, 0, heads, width], self.signature.dtype))
                else:
                    past = paddle.to_tensor(self.prefix[layer, part]).astype(self.signature.dtype)
                    held.append(past.unsqueeze(0).expand([batch, *past.shape]))
        return held


class StaticSteps:
    """Rows that a program answers.

    Args:
        model: The program.
        use_cache: False: every step begins from nothing.
    """

    def __init__(self, model: StaticModel, use_cache: bool) -> None:
        self.model, self.use_cache, self.past = model, use_cache, 0
        self._held: list[Any] = []

    def step(self, ids_BT: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        """Logits [B, V] after the last column."""
        return self.run(ids_BT, mask_BS, 1)[:, -1]

    def columns(self, ids_BT: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        """Logits [B, T, V] after each new column."""
        return self.run(ids_BT, mask_BS, ids_BT.shape[1])

    def run(self, ids_BT: np.ndarray, mask_BS: np.ndarray, wanted: int) -> np.ndarray:
        """Logits [B, wanted, V] after the last columns.

        Raises:
            DataError: A row lacks the tokens that the model finds its context by.
        """
        begins = not self.past
        held = self.model.first(len(ids_BT)) if begins else self._held
        virtual = np.ones((len(ids_BT), self.model.about.virtual_tokens), np.int64)
        inputs = [ids_BT, np.concatenate([virtual, mask_BS], axis=1), np.array([wanted], np.int32)]
        logits_BTV, *held = self.model.program(*map(paddle.to_tensor, inputs), *held)
        if begins:
            self._check(held)
        if self.use_cache:
            self._held, self.past = held, self.past + ids_BT.shape[1]
        return np.asarray(logits_BTV.numpy())

    def select(self, rows: list[int]) -> None:
        """Keeps these rows."""
        index = paddle.to_tensor(rows, dtype="int64")
        self._held = [paddle.index_select(kept, index) for kept in self._held]

    def _check(self, held: list[Any]) -> None:
        for name, row_B1 in zip(self.model.signature.rows, held, strict=False):
            lost = np.flatnonzero(row_B1.numpy()[:, 0] < 0)
            if len(lost):
                raise DataError(
                    f"prompt {lost[0] + 1} lacks the special tokens that mark the end of its prefix ({name}); use the model's chat "
                    "template, or write these tokens"
                )

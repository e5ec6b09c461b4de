"""An exported program as a model of batch generation: everything comes from its folder, nothing from a plugin.

It runs with ``paddle.jit.load``, not as a Predictor, so that keys and values stay tensors from step to step. Shape suffixes as in ``llmctl.nn``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle

from llmctl.checkpoint.formats.npy import read_npy
from llmctl.errors import CheckpointError, DataError
from llmctl.infer.eager import trace
from llmctl.infer.eager.exported import Exported, read
from llmctl.infer.eager.model import Choose, as_it_is

PREFIX = "prefix.npy"
_REMEDY = "export the model again"


class StaticModel:
    """The program of a folder.

    Args:
        folder: As ``llmctl export --engine static`` writes it.
        about: The content of its ``export.json``; None = it is read.

    Raises:
        CheckpointError: The folder is damaged.
    """

    max_stable_length: int | None = None

    def __init__(self, folder: Path, about: Exported | None = None) -> None:
        self.about = about or read(folder)
        try:
            self.program = paddle.jit.load(str(folder / trace.NAME))
            self.program.eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder} holds no program that paddle can load: {error}; {_REMEDY}") from None
        self.prefix = read_npy(folder / PREFIX) if self.about.virtual_tokens else None
        self.signature = trace.Signature(self.about.rows, self.about.heads, self.about.dtype)
        self._check_prefix(folder / PREFIX)

    def _check_prefix(self, file: Path) -> None:
        if self.prefix is None:
            return
        layers, widths = len(self.signature.heads), set(self.signature.heads)
        fits = self.prefix.dtype.kind == "f" and self.prefix.ndim == 5 and len(widths) == 1
        if not fits or self.prefix.shape != (layers, 2, self.about.virtual_tokens, *widths.pop()):
            raise CheckpointError(f"{file} does not hold the virtual tokens of the program; {_REMEDY}")

    def begin(self, max_length: int, use_cache: bool = True) -> StaticSession:
        """A session for new rows."""
        return StaticSession(self, use_cache)

    def logits(self, ids_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
        """Logits [B, T, V] of all positions of whole rows."""
        return StaticSession(self, False).run(ids_BT, mask_BT, ids_BT.shape[1])

    def first(self, batch: int) -> list[Any]:
        """Rows, keys and values of a batch that has computed nothing but virtual tokens."""
        state = [paddle.to_tensor(rows) for rows in trace.first_rows(self.signature, batch)]
        for layer, (kv_heads, head_dim) in enumerate(self.signature.heads):
            for part in range(2):
                if self.prefix is None:
                    state.append(paddle.zeros([batch, 0, kv_heads, head_dim], self.signature.dtype))
                else:
                    past = paddle.to_tensor(self.prefix[layer, part]).astype(self.signature.dtype)
                    state.append(past.unsqueeze(0).expand([batch, *past.shape]))
        return state


class StaticSession:
    """Rows that a program computes.

    Args:
        model: The program.
        use_cache: False: every step computes all tokens.
    """

    def __init__(self, model: StaticModel, use_cache: bool) -> None:
        self.model, self.use_cache, self.past = model, use_cache, 0
        self._state: list[Any] = []

    def step(self, ids_BT: np.ndarray, mask_BS: np.ndarray, choose: Choose = as_it_is) -> np.ndarray:
        """What is chosen from the logits [B, V] after the last position."""
        return choose(self.run(ids_BT, mask_BS, 1)[:, -1])

    def all_logits(self, ids_BT: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        """Logits [B, T, V] after each new position."""
        return self.run(ids_BT, mask_BS, ids_BT.shape[1])

    def run(self, ids_BT: np.ndarray, mask_BS: np.ndarray, count: int) -> np.ndarray:
        """Logits [B, count, V] after the last positions.

        Raises:
            DataError: A row lacks the tokens that delimit its bidirectional prefix.
        """
        begins = not self.past
        state = self.model.first(len(ids_BT)) if begins else self._state
        virtual = np.ones((len(ids_BT), self.model.about.virtual_tokens), np.int64)
        inputs = [ids_BT, np.concatenate([virtual, mask_BS], axis=1), np.array([count], np.int32)]
        try:
            logits_BTV, *state = self.model.program(*map(paddle.to_tensor, inputs), *state)
        except (ValueError, RuntimeError, TypeError) as error:
            if not begins:
                raise
            reason = str(error).strip().splitlines()[-1]
            raise CheckpointError(
                f"the program does not compute what its export.json says ({reason}); {_REMEDY}"
            ) from None
        if begins:
            self._check(state)
        if self.use_cache:
            self._state, self.past = state, self.past + ids_BT.shape[1]
        return np.asarray(logits_BTV.numpy())

    def select(self, rows: list[int]) -> None:
        """Keeps these rows."""
        index = paddle.to_tensor(rows, dtype="int64")
        self._state = [paddle.index_select(kept, index) for kept in self._state]

    def _check(self, state: list[Any]) -> None:
        for name, row_B1 in zip(self.model.signature.rows, state, strict=False):
            missing = np.flatnonzero(row_B1.numpy()[:, 0] < 0)
            if len(missing):
                raise DataError(
                    f"prompt {missing[0] + 1} lacks the special tokens that mark the end of its prefix ({name}); use the model's chat "
                    "template, or write these tokens"
                )

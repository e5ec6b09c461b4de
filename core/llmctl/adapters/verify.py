"""Compares the logits of a merged model with those of the base model and adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmctl import tokenizers
from llmctl.adapters.attach import adapted_model
from llmctl.adapters.folder import OpenedAdapter, tokenizer_folder
from llmctl.checkpoint.build import load_model
from llmctl.checkpoint.folder import open_folder
from llmctl.data.sft.encoding import prompt_ids
from llmctl.errors import CheckpointError
from llmctl.tokenizers.conversation import Conversation

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "1, 2, 3: count on, and do not stop before 20!",
)
ALLOWED = {"float64": 1e-5, "float32": 1e-5, "float16": 6e-3, "bfloat16": 5e-2}
"""Data type of the weights -> largest relative difference (L2 norm) of the logits."""


def verify(opened: OpenedAdapter, merged: Path) -> tuple[float, float]:
    """Compares the logits of two fixed texts; returns the relative difference and the allowed one.

    The models are in memory one after the other.

    Args:
        opened: The adapter and its base model.
        merged: Folder of the merged model.

    Raises:
        CheckpointError: The difference is larger than the rounding of the weights explains.
    """
    tokenizer = tokenizers.load(tokenizer_folder(opened.folder, opened.base), card=opened.plugin.card)
    rows = [prompt_ids(tokenizer, Conversation(((text, None),), None)) for text in TEXTS]
    expected = _logits(adapted_model(opened), rows)
    found = _logits(load_model(merged, opened.plugin.card.name)[0], rows)
    difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    types = {info.dtype for info in open_folder(merged).tensors.values()}
    allowed = max(ALLOWED.get(name, 0.0) for name in types)
    if not difference <= allowed:
        raise CheckpointError(
            f"{merged} differs from base model and adapter: the relative difference of the logits is {difference:.2g}, "
            f"{allowed:g} is allowed; do not use it, and try --dtype float32"
        )
    return difference, allowed


def _logits(model: Any, rows: list[list[int]]) -> np.ndarray[Any, Any]:
    import paddle

    model.eval()
    with paddle.no_grad():
        return np.concatenate([model(paddle.to_tensor([row])).numpy()[0] for row in rows])

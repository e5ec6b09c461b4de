"""Collates encoded examples into a batch. Their order is decided in ``llmctl.train.methods``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmctl.data.sft.encoding import IGNORE_INDEX, EncodedExample


def collate(rows: Sequence[EncodedExample], pad_id: int, multiple: int = 1) -> dict[str, NDArray[np.int64]]:
    """``input_ids``, ``attention_mask`` and ``labels`` [B, T], padded on the right.

    Args:
        rows: The B examples.
        pad_id: Padding token of ``input_ids``.
        multiple: T is rounded up to a multiple of this.
    """
    longest = max(len(row.input_ids) for row in rows)
    width = -(-longest // multiple) * multiple
    batch = {
        "input_ids": np.full((len(rows), width), pad_id, np.int64),
        "attention_mask": np.zeros((len(rows), width), np.int64),
        "labels": np.full((len(rows), width), IGNORE_INDEX, np.int64),
    }
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        batch["input_ids"][i, :length] = row.input_ids
        batch["attention_mask"][i, :length] = 1
        batch["labels"][i, :length] = row.labels
    return batch

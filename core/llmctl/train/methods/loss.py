"""The language-modelling loss: the next token, at the positions that have a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmctl.nn.loss import token_loss
from llmctl.train.methods.evaluate import label_logits
from llmctl.train.task import Loss


def next_token_loss(model: Any, arrays: Mapping[str, np.ndarray]) -> Loss:
    """Sum of the cross entropies of all labels, and their number; an auxiliary loss of the model counts per label."""
    logits_NV, labels_N = label_logits(model, arrays)
    total, count = token_loss(logits_NV, labels_N, overwrite=True), labels_N.shape[0]
    extra = getattr(model, "auxiliary_loss", lambda arrays: None)(arrays)
    return Loss(total if extra is None else total + extra * count, count)

"""Dropout switched off for good, wherever it stands in a model."""

from __future__ import annotations

import paddle

RATES = ("p", "dropout", "_dropout", "dropout_rate")
"""Attributes in which layers keep the part that they leave out: paddle's, and those of ``llmctl.nn``."""


def switch_off(model: paddle.nn.Layer) -> None:
    """Sets every rate of dropout in a model to 0, however deep its layer lies, in place."""
    for layer in model.sublayers(include_self=True):
        for name in RATES:
            if isinstance(getattr(layer, name, None), (int, float)):
                setattr(layer, name, 0.0)

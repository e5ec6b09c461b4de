"""Disabling dropout everywhere in a model."""

from __future__ import annotations

import paddle

RATES = ("p", "dropout", "_dropout", "dropout_rate")
"""Attributes that hold dropout rates: those of paddle's layers and of ``llmctl.nn``."""


def disable_dropout(model: paddle.nn.Layer) -> None:
    """Sets every dropout rate in a model to 0, in place and for good."""
    for layer in model.sublayers(include_self=True):
        for name in RATES:
            if isinstance(getattr(layer, name, None), (int, float)):
                setattr(layer, name, 0.0)

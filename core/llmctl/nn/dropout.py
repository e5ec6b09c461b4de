"""Disabling dropout everywhere in a model."""

from __future__ import annotations

from collections.abc import Iterator

import paddle

RATES = ("p", "dropout", "_dropout", "dropout_rate")
"""Attributes that hold dropout rates: those of paddle's layers and of ``llmctl.nn``."""


def disable_dropout(model: paddle.nn.Layer) -> None:
    """Sets every dropout rate in a model to 0, in place and for good."""
    for layer, name in _rates(model):
        setattr(layer, name, 0.0)


def has_dropout(model: paddle.nn.Layer) -> bool:
    """Whether any layer of a model drops values in training."""
    return any(getattr(layer, name) for layer, name in _rates(model))


def _rates(model: paddle.nn.Layer) -> Iterator[tuple[paddle.nn.Layer, str]]:
    for layer in model.sublayers(include_self=True):
        for name in RATES:
            if isinstance(getattr(layer, name, None), (int, float)):
                yield layer, name

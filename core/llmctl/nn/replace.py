"""Replacing layers of a model by name, for adapters, quantization and tensor parallelism."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

import paddle

Factory = Callable[[str, paddle.nn.Layer], paddle.nn.Layer]


def replace_layers(model: paddle.nn.Layer, names: Iterable[str], factory: Factory) -> None:
    """Replaces each named layer with ``factory(name, layer)``, in place.

    Args:
        model: The model to change.
        names: Paths such as ``"decoder.layers.0.self_attn.q_proj"``.
        factory: Makes the replacement from the path and the present layer.

    Raises:
        ValueError: The model has no layer of that name; then no layer is replaced.
    """
    layers = dict(model.named_sublayers())
    names = list(names)
    for name in names:
        if name not in layers:
            close = ", ".join(difflib.get_close_matches(name, layers, 3))
            raise ValueError(f"the model has no layer {name!r}" + (f"; close: {close}" if close else ""))
    for name in names:
        parent, _, key = name.rpartition(".")
        owner = layers[parent] if parent else model
        owner.add_sublayer(key, factory(name, layers[name]))

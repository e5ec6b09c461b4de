"""A model folder with random weights, of a size on a family's card or of given dims, for benchmarks."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file
from llmctl.errors import ConfigError
from llmctl.io.json_object import parse_json

STD = 0.02
CHUNK = 1 << 22


def dims_of(plugin: plugins.Plugin, size: str) -> Dims:
    """Dims from ``SIZE``, ``SIZE,name=value,...`` or ``name=value,...`` over the card's first size.

    Raises:
        ConfigError: There is no such size or setting, or a value is not a number.
    """
    first, *rest = size.split(",")
    name, changes = (first, rest) if "=" not in first else (next(iter(plugin.card.sizes)), [first, *rest])
    known = {setting.name for setting in plugin.card.settings}
    values: dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in known:
            raise ConfigError(f"--random: {plugin.card.name} has no setting {key!r}; it has {', '.join(sorted(known))}")
        try:
            values[key] = parse_json(value)
        except ValueError:
            raise ConfigError(f"--random: {key}={value!r} must be a number, true or false") from None
    return plugin.card.dims_of(name, **values)


def write_random(folder: Path, plugin: plugins.Plugin, dims: Dims) -> None:
    """Writes config.json and random weights in the family's own layout into an existing folder; needs no paddle."""
    config = {**plugin.card.config_from_dims(dims), "architectures": [plugin.card.architectures[0]]}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    planned = {
        tensor.name: _drawn(tensor.shape, tensor.kind == "norm" and tensor.name.endswith("weight"), index)
        for index, tensor in enumerate(plugin.card.expand(dims))
    }
    write_file(folder / "model.safetensors", planned)


def _drawn(shape: tuple[int, ...], ones: bool, seed: int) -> PlannedTensor:
    def write(stream: BinaryIO) -> None:
        left, rng = prod(shape), np.random.default_rng(seed)
        while left:
            count = min(left, CHUNK)
            values = np.ones(count, np.float32) if ones else STD * rng.standard_normal(count, np.float32)
            stream.write(values.tobytes())
            left -= count

    return PlannedTensor(shape, "float32", write)

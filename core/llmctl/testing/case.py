"""A case to record: a class of a family's original code, its configuration, and what that code supports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A model to record.

    Attributes:
        name: Folder of the golden, the recorded results.
        family: Family whose conformance class names the golden.
        model: Class of the original code.
        config: Arguments of the model's configuration.
        about: What the case shows, for people.
        file: The modeling file of a model repository; empty = the class is in transformers.
        architectures: Written into config.json, if published files name another class than the model's.
        weights: Dtype of the weights in the file; computation is in float32.
        tokens: Column of every row -> key of the configuration with the token id for that column.
        ids_below: Random token ids are below this one.
        padded: Whether the original supports left padding.
        positions: Whether position ids are passed with padded rows.
        generate: Whether the original's own generation with a KV cache is recorded, besides generation that recomputes each row.
        cache_differs: Whether generation with a KV cache gives other tokens, because positions depend on the row's length.
        trains: Whether the loss is that of training mode, which differs from evaluation.
        unused: Modules that the modeling file imports but the recorded path does not call; empty modules replace them.
    """

    name: str
    family: str
    model: str
    config: Mapping[str, Any]
    about: str
    file: str = ""
    architectures: tuple[str, ...] = ()
    weights: str = "float32"
    tokens: Mapping[int, str] = field(default_factory=dict)
    ids_below: int = 64
    padded: bool = True
    positions: bool = True
    generate: bool = True
    cache_differs: bool = False
    trains: bool = False
    unused: tuple[str, ...] = ()

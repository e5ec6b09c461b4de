"""What to record of a family's original code: which class, with which configuration, and what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A model to record.

    Attributes:
        name: Folder of the golden.
        family: Family whose conformance class names the golden.
        model: Class of the original code.
        config: Arguments of the model's configuration.
        about: What the case shows.
        file: The modeling file of a model repository; empty = the class is in transformers.
        architectures: Written into config.json where published files name another class than the model's.
        weights: Type of the weights in the file; they are computed with in float32.
        tokens: Place in every row -> key of the configuration that holds the token which belongs there.
        drawn: Tokens are drawn below this one.
        padded: Whether the original takes rows padded on the left.
        positions: Whether positions are passed with padded rows.
        generate: Whether the original's own generation, with a cache, is recorded beside recomputing all of a row.
        changing: Whether positions depend on the row's length, so that generation with a cache gives other tokens.
        trains: Whether the loss is that of training mode, which differs from that of evaluation.
        unused: Modules that the modeling file imports and the recorded path does not call; empty ones stand for them.
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
    drawn: int = 64
    padded: bool = True
    positions: bool = True
    generate: bool = True
    changing: bool = False
    trains: bool = False
    unused: tuple[str, ...] = ()

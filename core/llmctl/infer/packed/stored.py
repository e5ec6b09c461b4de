"""A packed model as JSON and back. The format has names of its own, which stay whatever classes and fields are called here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec, Experts, PrefixLM, Rope
from llmctl.infer.packed.linear import JoinedLinear, PackedLinear
from llmctl.infer.packed.model import Layer, Linear, LoraDelta, Norm, PackedAdapter, PackedModel, StageFold
from llmctl.io.typed import Count, check_type


@dataclass(frozen=True)
class Stored:
    """How a dataclass is stored.

    Attributes:
        name: Name of the class in the file.
        fields: Field here -> its name in the file, where they differ.
        values: Field here -> value here -> the value in the file, where they differ.
        absent: Field here -> value that is not written, so that files without it are those of earlier releases.
    """

    name: str
    fields: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)


STORED: Mapping[type, Stored] = {
    LoraDelta: Stored("Adapted"),
    PrefixLM: Stored("Contexts", {"mask_ids": "marks"}),
    Experts: Stored("Experts"),
    DecoderSpec: Stored(
        "FusedDecoder",
        {"residual_after_norm": "carry_normed", "residual_scale": "carry_scale", "prefix_lm": "contexts"},
    ),
    JoinedLinear: Stored("JoinedLinear"),
    Layer: Stored("Layer"),
    Linear: Stored("Linear"),
    Norm: Stored("Norm"),
    PackedAdapter: Stored("PackedAdapter", {"deltas": "changes"}),
    PackedLinear: Stored("PackedLinear", absent={"order": None, "factors": None}),
    PackedModel: Stored("PackedModel", absent={"folds": ()}),
    StageFold: Stored("StageFold"),
    Rope: Stored(
        "Rope",
        {"rotary_dim": "width", "max_stable_length": "stable_length"},
        {"pairs": {"neox": "halves", "interleaved": "neighbours", "2d": "two-halves"}},
        {"attention_factor": 1.0},
    ),
}
_CLASSES = {stored.name: cls for cls, stored in STORED.items()}


def encode(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """A part of a model as JSON; its arrays are appended to ``arrays`` and stored as their numbers."""
    if isinstance(value, np.ndarray):
        # That of a tied head is stored once.
        known = next((number for number, array in enumerate(arrays) if array is value), len(arrays))
        if known == len(arrays):
            arrays.append(np.ascontiguousarray(value))
        return {"array": known}
    if is_dataclass(value):
        stored = STORED[type(value)]
        row = {"is": stored.name}
        for name in (f.name for f in fields(value)):
            here = getattr(value, name)
            if name in stored.absent and not isinstance(here, np.ndarray) and stored.absent[name] == here:
                continue
            there = stored.values[name].get(here, here) if name in stored.values else here
            row[stored.fields.get(name, name)] = encode(there, arrays)
        return row
    if isinstance(value, Mapping):
        return {"rows": [[encode(key, arrays), encode(row, arrays)] for key, row in value.items()]}
    if isinstance(value, tuple | list):
        return [encode(row, arrays) for row in value]
    return value


def decode(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """The part of a model that JSON describes. Sequences are tuples, except for adapters, since more may be added.

    Raises:
        Exception: A TypeError, ValueError, LookupError, AttributeError or RecursionError: it does not describe one.
    """
    if isinstance(value, list):
        return tuple(decode(row, arrays) for row in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        check_type(value["array"], Count, "array")
        return arrays[value["array"]]
    if "rows" in value:
        return {decode(key, arrays): decode(row, arrays) for key, row in value["rows"]}
    cls = _CLASSES[value["is"]]
    stored = STORED[cls]
    here = {there: name for name, there in stored.fields.items()}
    made = {here.get(name, name): decode(row, arrays) for name, row in value.items() if name != "is"}
    for name, values in stored.values.items():
        made[name] = {there: name for name, there in values.items()}.get(made[name], made[name])
    if "adapters" in made:
        made["adapters"] = list(made["adapters"])
    return cls(**made)

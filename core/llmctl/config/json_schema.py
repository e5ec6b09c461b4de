"""Configurations as JSON Schema (draft 2020-12), from the same fields that ``schema.build`` checks, for editors."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

DRAFT = "https://json-schema.org/draft/2020-12/schema"
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
"""A number that YAML 1.1 reads as text, such as 1e-4, which has no decimal point."""
BOUNDS = {"minimum": "minimum", "maximum": "maximum", "above": "exclusiveMinimum"}
"""Rule of a field -> keyword."""


def json_schema(cls: type, title: str) -> dict[str, Any]:
    """The schema of the files of a configuration.

    Args:
        cls: The class of the configuration.
        title: Title of the schema.
    """
    hints = typing.get_type_hints(cls)
    return {
        "$schema": DRAFT,
        "title": title,
        "description": _doc(cls),
        **_object({part.name: _section(hints[part.name]) for part in dataclasses.fields(cls)}),
    }


def any_of(schemas: Mapping[str, Mapping[str, Any]], title: str) -> dict[str, Any]:
    """The schema of files that fit one of several.

    Args:
        schemas: Name -> schema.
        title: Title of the schema.
    """
    parts = {name: {key: value for key, value in it.items() if key != "$schema"} for name, it in schemas.items()}
    return {"$schema": DRAFT, "title": title, "anyOf": [{"$ref": f"#/$defs/{name}"} for name in parts], "$defs": parts}


def _object(properties: Mapping[str, Any], kind: Any = "object") -> dict[str, Any]:
    return {"type": kind, "properties": dict(properties), "additionalProperties": False}


def _section(cls: type) -> dict[str, Any]:
    """A section; in a file it may be empty, which YAML reads as null."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: _field(field, hints[field.name], cls) for field in dataclasses.fields(cls)}
    return {"description": _doc(cls), **_object(fields, ["object", "null"])}


def _field(field: dataclasses.Field[Any], hint: Any, cls: type) -> dict[str, Any]:
    rules = field.metadata
    bounds = {word: rules[rule] for rule, word in BOUNDS.items() if rules[rule] is not None}
    values = ({"enum": list(rules["choices"])} if rules["choices"] else {}) | bounds
    return {"description": rules["doc"], "default": getattr(cls(), field.name), **_type(hint, values)}


def _type(hint: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What ``schema.build`` accepts for a field of this type; a single value stands for a list of it."""
    if hint is float:
        return {"type": ["number", "string"], "pattern": NUMBER, **values}
    if typing.get_origin(hint) is list:
        item = _type(typing.get_args(hint)[0], values)
        return {"anyOf": [{"type": "array", "items": item}, item]}
    if isinstance(hint, types.UnionType):
        return {"type": [_NAMES[part] for part in typing.get_args(hint)], **values}
    return {"type": _NAMES[hint], **values}


_NAMES = {bool: "boolean", int: "integer", str: "string"}


def _doc(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]

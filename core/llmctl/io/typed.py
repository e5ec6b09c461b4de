"""Checks that a value read from a file has the type that an annotation says: the one check of what llmctl itself wrote.

Annotations are those of dataclasses and ``TypedDict``: bool, int, float, str, None, Any, Literal, unions, lists, tuples, mappings,
classes, and ``Annotated`` with ``Least``. Whole numbers fit into 64 bits, and a bool is no number. Objects may hold other keys.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

SHOWN = 60
"""Characters of a wrong value in a message."""
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}


@dataclass(frozen=True)
class Least:
    """The least value of a number."""

    value: float


Count = Annotated[int, Least(0)]
Positive = Annotated[int, Least(1)]


def check_type(value: Any, hint: Any, where: str = "") -> None:
    """Checks a value and everything in it.

    Args:
        value: What JSON holds, or objects that were made of it.
        hint: The annotation.
        where: Path of the value, for the message, such as ``files.a.bytes``.

    Raises:
        ValueError: Names the place, what it must be, and what it is.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return
    if origin is Annotated:
        check_type(value, args[0], where)
        for limit in args[1:]:
            if isinstance(limit, Least) and not (value is None or value >= limit.value):
                raise _wrong(where, f"at least {limit.value:g}", value)
    elif origin in (Union, types.UnionType):
        _check_union(value, args, where)
    elif origin is Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in args):
            raise _wrong(where, " or ".join(map(repr, args)), value)
    elif hint in _NAMES:
        _check_scalar(value, hint, where)
    elif typing.is_typeddict(hint):
        _check_fields(value, hint, where)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        _check_mapping(value, args, where)
    elif origin in (list, tuple):
        _check_list(value, origin, args, where)
    else:
        _check_object(value, origin or hint, where)


def _check_union(value: Any, hints: tuple[Any, ...], where: str) -> None:
    others = [hint for hint in hints if hint is not type(None)]
    if value is None and len(others) < len(hints):
        return
    if len(others) == 1:
        check_type(value, others[0], where)
        return
    for hint in others:
        try:
            return check_type(value, hint, where)
        except ValueError as error:
            last = error
    raise last


def _check_scalar(value: Any, kind: type, where: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and not -(2**63) <= value < 2**63:
        raise _wrong(where, "a number of at most 64 bits", value)
    right = whole or isinstance(value, float) if kind is float else whole if kind is int else isinstance(value, kind)
    if not right:
        raise _wrong(where, _NAMES[kind], value)


def _check_fields(value: Any, hint: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    if absent := sorted(hint.__required_keys__ - value.keys()):
        raise ValueError(f"{_at(where)}has no {' and no '.join(absent)}")
    for name, below in typing.get_type_hints(hint, include_extras=True).items():
        if name in value:
            check_type(value[name], below, f"{where}.{name}".lstrip("."))


def _check_mapping(value: Any, hints: tuple[Any, ...], where: str) -> None:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    for name, item in value.items():
        below = f"{where}.{name}".lstrip(".")[-3 * SHOWN :]
        check_type(name, hints[0], f"the key {below}")
        check_type(item, hints[1], below)


def _check_list(value: Any, kind: type, hints: tuple[Any, ...], where: str) -> None:
    if not isinstance(value, list | tuple):
        raise _wrong(where, "a list", value)
    same = kind is list or hints[1:] == (...,)
    if not same and len(value) != len(hints):
        raise _wrong(where, f"a list of {len(hints)}", value)
    for index, item in enumerate(value):
        check_type(item, hints[0] if same else hints[index], f"{where}[{index}]")


def _check_object(value: Any, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        raise _wrong(where, f"a {kind.__name__}", value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            check_type(getattr(value, field.name), hints[field.name], f"{where}.{field.name}".lstrip("."))


def _wrong(where: str, what: str, value: Any) -> ValueError:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):
        # Digits of a very long number; a value that is nested very deeply.
        shown = f"a {type(value).__name__}"
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    return ValueError(f"{_at(where)}must be {what}, not {shown}")


def _at(where: str) -> str:
    return f"{where} " if where else "it "

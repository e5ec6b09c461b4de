"""Configuration schema: dataclasses of sections, whose fields carry their help text, default and allowed values.

``build`` turns nested data into a configuration and checks it: an error on an unknown key suggests the nearest known one,
an error on a value says what is allowed. The other functions turn a configuration into plain data, YAML or a reference.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from llmctl.config.aliases import ALIASES, Alias
from llmctl.errors import ConfigError

T = TypeVar("T")


def option(
    default: Any,
    doc: str,
    *,
    choices: Sequence[Any] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    methods: Sequence[str] = (),
) -> Any:
    """A field of a section.

    Args:
        default: Default value.
        doc: Help text, one line.
        choices: Allowed values, for a list those of its items; empty = all.
        minimum: Smallest allowed number.
        maximum: Largest allowed number.
        above: The number must be greater than this.
        methods: Values of ``method.name`` for which the field has an effect. Empty = all.
    """
    bounds = {"choices": tuple(choices), "minimum": minimum, "maximum": maximum, "above": above}
    bounds["methods"] = tuple(methods)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"doc": doc, **bounds})
    return dataclasses.field(default=default, metadata={"doc": doc, **bounds})


def section(cls: type[T]) -> T:
    """A field of a configuration that is a section; its help text is the docstring of ``cls``."""
    return dataclasses.field(default_factory=cls, metadata={"doc": (cls.__doc__ or "").strip()})


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Builds and checks a configuration.

    Args:
        cls: Class of the configuration.
        data: Section -> key -> value.
        where: Where the data comes from, for the message.

    Raises:
        ConfigError: Lists all unknown keys, wrong types and values out of range.
    """
    problems: list[str] = []
    config = _build(cls, data, "", problems, cls)
    if problems:
        head = f"{where}: " if where else ""
        raise ConfigError(f"{head}the configuration is not valid:\n  " + "\n  ".join(problems))
    return typing.cast(T, config)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain nested data."""
    return dataclasses.asdict(config)


def changed_keys(config: Any) -> list[str]:
    """Keys (``section.field``) whose values differ from the defaults."""
    return [
        f"{part.name}.{name}"
        for part in dataclasses.fields(config)
        for name in changed_fields(getattr(config, part.name))
    ]


def changed_fields(section: Any) -> list[str]:
    """Names of the fields of a section whose values differ from the defaults."""
    defaults = type(section)()
    return [
        field.name
        for field in dataclasses.fields(section)
        if getattr(section, field.name) != getattr(defaults, field.name)
    ]


def shown(value: Any) -> Any:
    """A value of a field as YAML has it, for messages."""
    return str(value).lower() if isinstance(value, bool) else value


def to_yaml(config: Any, header: str = "") -> str:
    """A configuration as YAML, with the help text after each field; empty lists are commented out."""
    lines = [f"# {line}" for line in header.splitlines()]
    for part in dataclasses.fields(config):
        lines.append(f"{part.name}:")
        value = getattr(config, part.name)
        for field in dataclasses.fields(value):
            content = getattr(value, field.name)
            text = (
                f"  {field.name}: {json.dumps(content, ensure_ascii=False)}"
                if content != []
                else f"  # {field.name}: [...]"
            )
            lines.append(f"{text:<34}  # {field.metadata['doc']}{_allowed(field.metadata)}")
    return "\n".join(lines) + "\n"


def describe(cls: type) -> Iterator[tuple[str, str, str, str, str]]:
    """(key, type, default, allowed values, help text) of every field, for the reference page."""
    for part in dataclasses.fields(cls):
        sub = typing.get_type_hints(cls)[part.name]
        hints = typing.get_type_hints(sub)
        for field in dataclasses.fields(sub):
            default = getattr(sub(), field.name)
            allowed = _allowed(field.metadata).strip(" ()")
            yield (
                f"{part.name}.{field.name}",
                _type_name(hints[field.name]).removeprefix("an ").removeprefix("a "),
                json.dumps(default),
                allowed,
                field.metadata["doc"],
            )


def _build(cls: type, data: Mapping[str, Any], prefix: str, problems: list[str], root: type) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in fields:
            problems.append(_unknown(str(key), prefix, list(fields), root))
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(value, Mapping):
                values[key] = _build(typing.cast(type, hints[key]), value, f"{prefix}{key}.", problems, root)
            elif value is not None:
                problems.append(f"{prefix}{key}={value!r}: expected a section (a mapping of keys)")
        elif value is not None:  # null is as if the key were not there
            values[key] = _check(prefix + key, value, hints[key], fields[key].metadata, problems)
    return cls(**values)


def _check(name: str, value: Any, hint: Any, rules: Mapping[str, Any], problems: list[str]) -> Any:
    value, fits = _convert(value, hint)
    if not fits:
        problems.append(f"{name}={value!r}: expected {_type_name(hint)}")
        return value
    items = value if isinstance(value, list) else [value]
    wrong = [item for item in items if rules["choices"] and item not in rules["choices"]]
    if wrong:
        near = difflib.get_close_matches(str(wrong[0]), [str(c) for c in rules["choices"]], 1)
        hint_text = f"; did you mean {near[0]}?" if near else ""
        problems.append(f"{name}={value!r}: allowed are {', '.join(map(str, rules['choices']))}{hint_text}")
    elif any(
        isinstance(item, (int, float)) and not isinstance(item, bool) and not _in_range(item, rules) for item in items
    ):
        finite = all(math.isfinite(item) for item in items if isinstance(item, float))
        bounds = _allowed(rules).replace("(", "").replace(")", "") if finite else " a finite number"
        problems.append(f"{name}={value!r}: must be{bounds}")
    return value


def _convert(value: Any, hint: Any) -> tuple[Any, bool]:
    if hint is bool:
        return value, isinstance(value, bool)
    if hint is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        if isinstance(value, str):
            # YAML 1.1 parses 1e-4, which has no decimal point, as a string.
            try:
                return float(value), True
            except ValueError:
                return value, False
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (float(value), True) if good else (value, False)
    if hint is str:
        return value, isinstance(value, str)
    if typing.get_origin(hint) is list:
        (kind,) = typing.get_args(hint)
        found = [_convert(item, kind) for item in (value if isinstance(value, list) else [value])]
        fits = all(good for _, good in found)
        return [item for item, _ in found] if fits else value, fits
    if isinstance(hint, types.UnionType):
        return value, any(_convert(value, part)[1] for part in typing.get_args(hint) if part is not type(None))
    raise TypeError(f"no rule for fields of type {hint}")


def _in_range(value: float, rules: Mapping[str, Any]) -> bool:
    low, high, above = rules["minimum"], rules["maximum"], rules["above"]
    if value != value or value in (float("inf"), float("-inf")):
        return False
    return (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)


def _allowed(rules: Mapping[str, Any]) -> str:
    parts = [
        " | ".join(map(str, rules["choices"])),
        f"at least {rules['minimum']}" if rules["minimum"] is not None else "",
        f"at most {rules['maximum']}" if rules["maximum"] is not None else "",
        f"above {rules['above']}" if rules["above"] is not None else "",
    ]
    text = ", ".join(part for part in parts if part)
    return f" ({text})" if text else ""


def _unknown(key: str, prefix: str, known: list[str], root: type) -> str:
    """What to say of a key: what it is called here or in which section it is, else the nearest one, else all."""
    keys = [row[0] for row in describe(root)]
    alias = ALIASES.get(key, Alias(()))
    ours = [name for name in alias.keys if name in keys] or [name for name in keys if name.endswith(f".{key}")]
    near = difflib.get_close_matches(key, known, 1)
    if ours:
        hint = f"did you mean {ours[0]}?{f' ({alias.hint})' if alias.hint else ''}"
    elif alias.hint:
        hint = alias.hint
    elif near:
        hint = f"did you mean {prefix}{near[0]}?"
    else:
        hint = f"known: {', '.join(known)}"
    return f"unknown key {prefix}{key}; {hint}"


def _type_name(hint: Any) -> str:
    names = {
        bool: "true or false", int: "an integer", float: "a number", str: "a string", str | int: "a string or an integer",
        list[float]: "a number or a list of numbers", list[int]: "an integer or a list of integers",
    }  # fmt: skip
    return names.get(hint, "a string or a list of strings")

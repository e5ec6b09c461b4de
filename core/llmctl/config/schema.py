"""What a configuration is made of: fields that state their meaning, range and default, in sections.

``build`` makes a configuration of nested data: an unknown key is an error that names the nearest known one, a value of the
wrong type or out of range one that says what is allowed. The rest turns a configuration back into data, text or rows of a
reference page. Which fields there are is in ``config.py`` and its neighbours. Nothing here imports paddle, numpy or rich.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, TypeVar

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
    """A field: its default, one line of documentation, what values are allowed, and the methods it has an effect with.

    No methods stands for all.
    """
    bounds = {"choices": tuple(choices), "minimum": minimum, "maximum": maximum, "above": above}
    bounds["methods"] = tuple(methods)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"doc": doc, **bounds})
    return field(default=default, metadata={"doc": doc, **bounds})


def section(cls: type[T]) -> T:
    """A field that holds a section."""
    return field(default_factory=cls, metadata={"doc": (cls.__doc__ or "").strip()})


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """A configuration of this class from nested mappings.

    Raises:
        ConfigError: Lists every unknown key, wrong type and value out of range at once.
    """
    problems: list[str] = []
    made = _build(cls, data, "", problems)
    if problems:
        head = f"{where}: " if where else ""
        raise ConfigError(f"{head}the configuration is not valid:\n  " + "\n  ".join(problems))
    return typing.cast(T, made)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain nested data."""
    return dataclasses.asdict(config)


def chosen(config: Any) -> list[str]:
    """Keys whose values differ from the defaults."""
    return [
        f"{part.name}.{name}" for part in dataclasses.fields(config) for name in chosen_of(getattr(config, part.name))
    ]


def chosen_of(section: Any) -> list[str]:
    """Names of a section's fields whose values differ from the defaults."""
    defaults = type(section)()
    return [
        row.name for row in dataclasses.fields(section) if getattr(section, row.name) != getattr(defaults, row.name)
    ]


def to_yaml(config: Any, header: str = "") -> str:
    """A configuration as YAML, each field with its documentation behind it; a list that is empty is commented out."""
    lines = [f"# {line}" for line in header.splitlines()]
    for part in dataclasses.fields(config):
        lines.append(f"{part.name}:")
        value = getattr(config, part.name)
        for row in dataclasses.fields(value):
            content = getattr(value, row.name)
            text = (
                f"  {row.name}: {json.dumps(content, ensure_ascii=False)}"
                if content != []
                else f"  # {row.name}: [...]"
            )
            lines.append(f"{text:<34}  # {row.metadata['doc']}{_allowed(row.metadata)}")
    return "\n".join(lines) + "\n"


def describe(cls: type) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows (key, type, default, allowed, documentation) of every field, for the reference page."""
    for part in dataclasses.fields(cls):
        sub = typing.get_type_hints(cls)[part.name]
        hints = typing.get_type_hints(sub)
        for row in dataclasses.fields(sub):
            default = getattr(sub(), row.name)
            allowed = _allowed(row.metadata).strip(" ()")
            yield (
                f"{part.name}.{row.name}",
                _type_name(hints[row.name]),
                json.dumps(default),
                allowed,
                row.metadata["doc"],
            )


def _build(cls: type, data: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    rows = {row.name: row for row in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in rows:
            problems.append(_unknown(str(key), prefix, list(rows)))
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(value, Mapping):
                values[key] = _build(typing.cast(type, hints[key]), value, f"{prefix}{key}.", problems)
            elif value is not None:
                problems.append(f"{prefix}{key} is a section with keys of its own, not {value!r}")
        else:
            values[key] = _check(prefix + key, value, hints[key], rows[key].metadata, problems)
    return cls(**values)


def _check(name: str, value: Any, hint: Any, rules: Mapping[str, Any], problems: list[str]) -> Any:
    value, fits = _convert(value, hint)
    if not fits:
        problems.append(f"{name}={value!r}: expected {_type_name(hint)}")
        return value
    chosen = value if isinstance(value, list) else [value]
    strange = [one for one in chosen if rules["choices"] and one not in rules["choices"]]
    if strange:
        near = difflib.get_close_matches(str(strange[0]), [str(c) for c in rules["choices"]], 1)
        hint_text = f"; did you mean {near[0]}?" if near else ""
        problems.append(f"{name}={value!r}: allowed are {', '.join(map(str, rules['choices']))}{hint_text}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not _in_range(value, rules):
        problems.append(f"{name}={value!r}: must be{_allowed(rules).replace('(', '').replace(')', '')}")
    return value


def _convert(value: Any, hint: Any) -> tuple[Any, bool]:
    if hint is bool:
        return value, isinstance(value, bool)
    if hint is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        if isinstance(value, str):
            # YAML 1.1 reads 1e-4, which has no point, as text.
            try:
                return float(value), True
            except ValueError:
                return value, False
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (float(value), True) if good else (value, False)
    if hint is str:
        return value, isinstance(value, str)
    if typing.get_origin(hint) is list:
        if isinstance(value, str):
            return [value], True
        return value, isinstance(value, list) and all(isinstance(item, str) for item in value)
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


def _unknown(key: str, prefix: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {prefix}{key}; {hint}"


def _type_name(hint: Any) -> str:
    names = {
        bool: "true or false", int: "a whole number", float: "a number", str: "text", str | int: "text or a whole number",
    }  # fmt: skip
    return names.get(hint, "text or a list of texts")

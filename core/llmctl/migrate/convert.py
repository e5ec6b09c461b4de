"""Converts an old configuration to a new one, and lists what was left out and why."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.config import schema
from llmctl.errors import ConfigError, UnsupportedError
from llmctl.hub.name import parse
from llmctl.jobs import registry
from llmctl.migrate.dialect import Dialect
from llmctl.migrate.dialects import DIALECTS, dialect_of
from llmctl.migrate.table import Table


@dataclass(frozen=True)
class Migrated:
    """A converted configuration.

    Attributes:
        command: The command that runs it.
        values: New configuration, nested, without fields that have their default.
        no_effect: Reason -> old keys without effect, or with another.
        ignored: Unsupported features that were left out, one line each.
    """

    command: str
    values: dict[str, Any]
    no_effect: dict[str, list[str]]
    ignored: list[str]

    def notes(self) -> list[str]:
        """One line for each thing that was left out or must be changed."""
        lines = [f"left out, not supported: {line}" for line in self.ignored]
        lines += [f"{', '.join(keys)}: {reason}" for reason, keys in self.no_effect.items()]
        path = self.values["model"].get("path") or self.values["model"].get("config", "")
        if not Path(path).expanduser().exists() and not parse(path):
            lines.append(f"the model {path} must be a folder on this machine; download it, or change the path")
        return lines


def migrate(data: Mapping[str, Any], where: str, allow_ignored: bool = False) -> Migrated:
    """Converts an old configuration.

    Args:
        data: The old keys, of one of the dialects.
        where: Name of the file, for messages.
        allow_ignored: Leave out unsupported features instead of raising.

    Raises:
        ConfigError: Lists all unknown keys, invalid values and unsupported features.
        UnsupportedError: The command or method of the file is not in this release.
    """
    dialect = dialect_of(data)
    if dialect is None:
        raise ConfigError(f"{where} is a configuration of none of {', '.join(it.name for it in DIALECTS)}")
    keys = dialect.table
    old = _resolve_aliases(data, where, keys)
    command = dialect.command(old)
    cls = _class(command, where, dialect)
    inactive = _inactive(old, dialect)
    no_effect = _no_effect(old, {**keys.no_effect, **inactive})
    for key, effect in dialect.effects(old, command).items():
        no_effect.setdefault(effect, []).append(key)
    old = {key: value for key, value in old.items() if key not in inactive}
    problems = [_unknown(key, keys) for key in old if key not in keys.names]
    unsupported = _unsupported(old, command, keys)
    values = dict(dialect.defaults[command])
    for rule in dialect.rules:
        try:
            values.update(rule(old, command))
        except ValueError as error:
            problems.append(str(error))
    for key, targets in keys.same.items():
        if key in old and command in targets:
            values[targets[command]] = old[key]
    if problems or (unsupported and not allow_ignored):
        raise ConfigError(_message(where, problems, unsupported))
    _check_method(cls, values, where)
    nested = _nested(cls, values)
    made = schema.build(cls, nested, f"{where}, converted")
    chosen = set(schema.changed_keys(made))
    kept = {key: value for key, value in values.items() if key in chosen}
    return Migrated(command, _nested(cls, kept), no_effect, unsupported)


def to_yaml(migrated: Migrated, family: str) -> str:
    """The new file: a header with the command and notes, then the fields that differ from their defaults."""
    chosen = "" if family == "auto" else f"--model {family} "
    header = [f"Run with: llmctl {chosen}{migrated.command} THIS_FILE", *migrated.notes()]
    lines = [f"# {line}" for line in header]
    for section, rows in migrated.values.items():
        lines.append(f"{section}:")
        lines += [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in rows.items()]
    return "\n".join(lines) + "\n"


def _resolve_aliases(data: Mapping[str, Any], where: str, keys: Table) -> dict[str, Any]:
    """The old keys with aliases replaced, without those that are null.

    Raises:
        ConfigError: A key and its alias have different values.
    """
    old: dict[str, Any] = {}
    for given, value in data.items():
        key = keys.aliases.get(given, given)
        if value is not None and old.setdefault(key, value) != value:
            raise ConfigError(
                f"{where}: {given}={value!r} contradicts {key}={old[key]!r}, of which it is an alias; leave one out"
            )
    return old


def _class(command: str, where: str, dialect: Dialect) -> Any:
    if command in dialect.refused:
        raise UnsupportedError(f"{where} {dialect.refused[command]}")
    if command not in registry.COMMANDS:
        raise UnsupportedError(f"{where} is for {command}, which is not in this release")
    return registry.resolve(registry.COMMANDS[command].config)


def _unsupported(old: Mapping[str, Any], command: str, keys: Table) -> list[str]:
    """Unsupported features that are on, and keys of other commands, one line each."""
    lines = []
    for key, value in old.items():
        if key in keys.unsupported and not keys.unsupported[key].is_off(value):
            lines.append(f"{key}={value!r}: {keys.unsupported[key].instead}")
        elif key in keys.same and command not in keys.same[key] and value:
            lines.append(f"{key}={value!r}: not a key of llmctl {command}, but of {', '.join(keys.same[key])}")
    return lines


def _inactive(old: Mapping[str, Any], dialect: Dialect) -> dict[str, str]:
    """Key -> why it had no effect: its feature is off in this file."""
    return {key: reason for reason, is_on, keys in dialect.inactive if not is_on(old) for key in keys if key in old}


def _no_effect(old: Mapping[str, Any], reason_of: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> keys that have no effect."""
    reasons: dict[str, list[str]] = {}
    for key, value in old.items():
        if key in reason_of and value:
            reasons.setdefault(reason_of[key], []).append(key)
    return reasons


def _unknown(key: str, keys: Table) -> str:
    near = difflib.get_close_matches(key, keys.names, 1)
    return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")


def _message(where: str, problems: list[str], unsupported: list[str]) -> str:
    lines = [f"{where} cannot be converted:", *(f"  {line}" for line in problems)]
    if unsupported:
        lines += ["  not supported (--allow-ignored leaves these out):", *(f"    {line}" for line in unsupported)]
    return "\n".join(lines)


def _check_method(cls: Any, values: Mapping[str, Any], where: str) -> None:
    """Checks that this release has the method and the quantization of the file."""
    for key in ("method.name", "method.base"):
        if key in values:
            field = _fields(cls, "method").get(key.partition(".")[2])
            if field is None or values[key] not in field.metadata["choices"]:
                raise UnsupportedError(f"{where} needs {key}={values[key]}, which is not in this release")


def _fields(cls: Any, section: str) -> dict[str, dataclasses.Field[Any]]:
    return {row.name: row for row in dataclasses.fields(typing.get_type_hints(cls)[section])}


def _nested(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """``section.key`` -> value as nested sections, in the order of the classes, with values as these expect them."""
    nested: dict[str, Any] = {}
    for part in dataclasses.fields(cls):
        hints = typing.get_type_hints(typing.get_type_hints(cls)[part.name])
        ordered = [name for name in hints if f"{part.name}.{name}" in values]
        keys = [key.partition(".")[2] for key in values if key.startswith(f"{part.name}.")]
        rows = {name: values[f"{part.name}.{name}"] for name in [*ordered, *(n for n in keys if n not in hints)]}
        if rows:
            nested[part.name] = {name: _as(hints.get(name), value) for name, value in rows.items()}
    return nested


def _as(hint: Any, value: Any) -> Any:
    """0 and 1 as booleans, and a number that YAML reads as text, such as 1e-4, as one, where they are expected."""
    if hint is bool and value in (0, 1):
        return bool(value)
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value

"""An old file as a configuration of ours, with everything that was left out and why."""

from __future__ import annotations

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
from llmctl.jobs import registry
from llmctl.migrate import derived
from llmctl.migrate.table import table


@dataclass(frozen=True)
class Migrated:
    """A converted file.

    Attributes:
        command: Name of the command that runs it.
        values: Our nested configuration, without what equals our defaults.
        idle: Old keys without effect here, by reason.
        ignored: What was left out although it has an effect, one line each.
    """

    command: str
    values: dict[str, Any]
    idle: dict[str, list[str]]
    ignored: list[str]

    def notes(self) -> list[str]:
        """Lines on what was left out."""
        lines = [f"left out, with an effect: {line}" for line in self.ignored]
        lines += [f"without effect here: {', '.join(keys)}; {reason}" for reason, keys in self.idle.items()]
        path = self.values["model"].get("path") or self.values["model"].get("config", "")
        if not Path(path).expanduser().exists():
            lines.append(f"the model {path} must be a folder on this machine; put it there or change the path")
        return lines


def is_old(data: Mapping[str, Any]) -> bool:
    """Whether a configuration file is one of PaddleNLP's: flat, with a model and an output folder."""
    return "output_dir" in data and any(key.endswith("model_name_or_path") for key in data)


def migrate(data: Mapping[str, Any], where: str, allow_ignored: bool = False) -> Migrated:
    """Converts the content of an old file.

    Args:
        data: The file's keys.
        where: Its name, for messages.
        allow_ignored: Leave out features that are not offered instead of refusing the file.

    Raises:
        ConfigError: Lists every unknown key, value without a counterpart, and feature that is not offered.
        UnsupportedError: The file's command or method is not in this release.
    """
    found = table()
    old = _under_one_name(data, where)
    command = derived.command(old)
    cls = _class(command, where)
    unasked = _unasked(old)
    idle = _idle(old, unasked)
    old = {key: value for key, value in old.items() if key not in unasked}
    problems = [_unknown(key) for key in old if key not in found.names]
    missing = _missing(old, command)
    values = dict(derived.BEFORE[command])
    for rule in derived.RULES:
        try:
            values.update(rule(old, command))
        except ValueError as error:
            problems.append(str(error))
    for key, targets in found.same.items():
        if key in old and command in targets:
            values[targets[command]] = old[key]
    if problems or (missing and not allow_ignored):
        raise ConfigError(_refusal(where, problems, missing))
    _check_method(cls, values, where)
    nested = _nested(cls, values)
    made = schema.build(cls, nested, f"{where}, converted")
    chosen = set(schema.changed_keys(made))
    kept = {key: value for key, value in values.items() if key in chosen}
    return Migrated(command, _nested(cls, kept), idle, missing)


def to_yaml(migrated: Migrated, family: str) -> str:
    """The new file: a header with the command and the notes, then what differs from the defaults."""
    header = [f"Run with: llmctl --model {family} {migrated.command} THIS_FILE", *migrated.notes()]
    lines = [f"# {line}" for line in header]
    for section, rows in migrated.values.items():
        lines.append(f"{section}:")
        lines += [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in rows.items()]
    return "\n".join(lines) + "\n"


def _under_one_name(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The file's keys without other names for the same; null stands for a key that is not there.

    Raises:
        ConfigError: Two names of a key have different values.
    """
    old: dict[str, Any] = {}
    for given, value in data.items():
        key = table().aliases.get(given, given)
        if value is not None and old.setdefault(key, value) != value:
            raise ConfigError(
                f"{where}: {given}={value!r} is another name of {key}, which is {old[key]!r}; leave one out"
            )
    return old


def _class(command: str, where: str) -> Any:
    if command in derived.REFUSED:
        raise UnsupportedError(f"{where} {derived.REFUSED[command]}")
    if command not in registry.PARTS:
        raise UnsupportedError(f"{where} is for {command}, which is not in this release; keep the file for later")
    return registry.part(command, "config")


def _missing(old: Mapping[str, Any], command: str) -> list[str]:
    found = table()
    lines = []
    for key, value in old.items():
        if key in found.absent and not found.absent[key].is_off(value):
            lines.append(f"{key}={value!r}: {found.absent[key].instead}")
        elif key in found.same and command not in found.same[key] and value:
            lines.append(
                f"{key}={value!r}: has no meaning for llmctl {command}; it belongs to {', '.join(found.same[key])}"
            )
    return lines


def _unasked(old: Mapping[str, Any]) -> dict[str, str]:
    """Keys that belong to what the file does not ask for, and why they had no effect."""
    return {key: reason for reason, asked, keys in derived.UNASKED if not asked(old) for key in keys if key in old}


def _idle(old: Mapping[str, Any], unasked: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    because = {**table().idle, **unasked}
    for key, value in old.items():
        if key in because and value:
            reasons.setdefault(because[key], []).append(key)
    if old.get("bf16") or old.get("fp16"):
        kind = "bf16" if old.get("bf16") else "fp16"
        reasons.setdefault("training computes in float32; only the type of the final weights follows it", []).append(
            kind
        )
    return reasons


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, table().names, 1)
    return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")


def _refusal(where: str, problems: list[str], missing: list[str]) -> str:
    lines = [f"{where} cannot be converted:", *(f"  {line}" for line in problems)]
    if missing:
        lines += ["  not offered here (--allow-ignored leaves these out):", *(f"    {line}" for line in missing)]
    return "\n".join(lines)


def _check_method(cls: Any, values: Mapping[str, Any], where: str) -> None:
    """Passes when this release has the method and the kind of base that the file asks for."""
    for key in ("method.name", "method.base"):
        if key in values:
            field = _fields(cls, "method").get(key.partition(".")[2])
            if field is None or values[key] not in field.metadata["choices"]:
                raise UnsupportedError(f"{where} needs {key}={values[key]}, which is not in this release")


def _fields(cls: Any, section: str) -> dict[str, dataclasses.Field[Any]]:
    return {row.name: row for row in dataclasses.fields(typing.get_type_hints(cls)[section])}


def _nested(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Our nested configuration, in the order of the classes; 0 and 1 stand for false and true where these are asked."""
    nested: dict[str, Any] = {}
    for part in dataclasses.fields(cls):
        hints = typing.get_type_hints(typing.get_type_hints(cls)[part.name])
        ordered = [name for name in hints if f"{part.name}.{name}" in values]
        rest = [key.partition(".")[2] for key in values if key.startswith(f"{part.name}.")]
        rows = {name: values[f"{part.name}.{name}"] for name in [*ordered, *(n for n in rest if n not in hints)]}
        if rows:
            nested[part.name] = {
                name: bool(value) if hints.get(name) is bool and value in (0, 1) else value
                for name, value in rows.items()
            }
    return nested

"""Recipes: ready configurations. Core ships those that suit every family, plugins those that differ.

``llmctl/recipes`` has ``NAME.yaml`` for fine-tuning and ``COMMAND/NAME.yaml`` for other commands, and under ``moe`` those for
MoE models. The folder ``recipes`` of a plugin has the same layout, and its recipes replace those of core with the same name;
a plugin with several families has recipes of one of them in a subfolder FAMILY.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from llmctl import plugins
from llmctl.card.capabilities import Unsupported
from llmctl.card.family import Family
from llmctl.card.support import state
from llmctl.config import file
from llmctl.errors import ConfigError
from llmctl.migrate.config_file import read_config_file

CORE = Path(__file__).resolve().parents[1] / "recipes"
METHODS = {
    "sft": ("sft",),
    "lora": ("lora",),
    "qlora": ("lora",),
    "prefix": ("prefix-tuning",),
    "dpo/full": ("dpo",),
    "dpo/lora": ("dpo", "lora"),
    "pretrain/small": ("pretrain",),
    "quantize/int4": ("quantize",),
    "quantize/int8": ("quantize",),
}
"""Recipe of core -> the methods that a family must support to have it."""
PLACEHOLDERS = {
    "finetune": {"model.path": "MODEL", "data.train": "TRAIN.jsonl"},
    "dpo": {"model.path": "MODEL", "data.train": "PAIRS.jsonl"},
    "pretrain": {"data.corpora": "PREFIX", "model.tokenizer": "FOLDER"},
    "quantize": {"model.path": "MODEL", "calibration.file": "TRAIN.jsonl"},
}
"""Command -> fields that a user must set if the recipe does not, with their placeholder in the header."""


NEW_MODEL = ("size", "config", "changes", "vocab_multiple")
"""Keys of the section ``model`` that are about a new model."""


class NoStarter(ConfigError):
    """No configuration and no recipe is given, and the family has no starter recipe."""


@dataclass(frozen=True)
class Recipe:
    """A ready configuration of a family.

    Attributes:
        name: Name of the recipe.
        command: The command that runs it, a key of ``PLACEHOLDERS``.
        card: Card of the family; None = any.
        path: Its file.
    """

    name: str
    command: str
    card: Family | None
    path: Path

    def content(self) -> dict[str, Any]:
        """The configuration.

        In recipes of core, ``model.changes`` has names of the card; they are replaced by the family's keys of config.json, and
        dropped if the family has no such key.

        Raises:
            ConfigError: It makes a new model, and there is no family.
        """
        data = file.read_file(self.path)
        if self.card is None:
            if "size" in data.get("model", {}):
                raise ConfigError(
                    f"the recipe {self.name} makes a new model of a family; name it: llmctl --model FAMILY {self.command} "
                    f"--recipe {self.name}"
                )
            return data
        if self.path.is_relative_to(CORE) and "changes" in data.get("model", {}):
            keys = {row.name: row.key for row in self.card.settings if row.key}
            pairs = [change.split("=", 1) for change in data["model"]["changes"]]
            data["model"]["changes"] = [f"{keys[name]}={value}" for name, value in pairs if name in keys]
        return data

    def header(self) -> str:
        """The comment at the top of its file, and the command that runs it."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        about = [line.removeprefix("#").strip() for line in lines[: _comments(lines)]]
        return "\n".join([*about, f"Run with: {self.command_line()}"])

    def command_line(self) -> str:
        """The command that runs the recipe, with placeholders in capitals for what the user must give."""
        data = self.content()
        missing = {key: word for key, word in PLACEHOLDERS[self.command].items() if not _given(data, key)}
        model = "MODEL" if self.card is None else self.card.name
        sets = [f"--set {key}={word}" for key, word in missing.items() if self.card or key != "model.path"]
        name = [] if self.card and self.name == self.card.starter else ["--recipe", self.name]
        output = ["--output RUN"] if sets else []
        return " ".join(["llmctl --model", model, self.command, *name, *sets, *output])


def recipes(plugin: plugins.Plugin | None, command: str = "finetune") -> dict[str, Recipe]:
    """Name -> recipe of a family for a command, sorted; recipes of the plugin replace those of core.

    Args:
        plugin: The family; None = any, which has the recipes of core.
        command: The command.
    """
    kind = "" if command == "finetune" else command
    if plugin is None:
        return {path.stem: Recipe(path.stem, command, None, path) for path in sorted((CORE / kind).glob("*.yaml"))}
    folders = [CORE / kind, *([CORE / "moe" / kind] if plugin.card.moe else [])]
    found = {
        path.stem: path
        for folder in folders
        for path in folder.glob("*.yaml")
        if _offered(plugin.card, f"{kind}/{path.stem}".strip("/"))
    }
    own = plugin.folder / "recipes" / kind
    found |= {path.stem: path for folder in (own, own / plugin.card.name) for path in folder.glob("*.yaml")}
    return {name: Recipe(name, command, plugin.card, found[name]) for name in sorted(found)}


def read_recipe(plugin: plugins.Plugin | None, name: str, command: str = "finetune") -> tuple[dict[str, Any], str]:
    """The configuration of a recipe, and where it comes from, for messages.

    Args:
        plugin: The family; None = any.
        name: Name of the recipe.
        command: The command.

    Raises:
        ConfigError: The family has no such recipe, or it makes a new model and there is no family.
    """
    known = recipes(plugin, command)
    if plugin is None:
        if name not in known:
            raise ConfigError(
                f"there is no {command} recipe {name!r} for every family; there are {', '.join(known)}. Families have more: "
                "llmctl models FAMILY"
            )
        return known[name].content(), f"recipe {name}"
    if name not in known:
        kind = "" if command == "finetune" else f"{command} "
        raise ConfigError(
            f"the family {plugin.card.name} has no {kind}recipe {name!r}; it has {', '.join(known) or 'none'}"
        )
    return known[name].content(), f"recipe {name} of {plugin.installed}"


def find_source(
    command: str,
    families: plugins.Families,
    family: str,
    has_model: bool,
    config_file: Path | None,
    recipe: str | None,
    allow_ignored: bool,
) -> tuple[dict[str, Any], str]:
    """The raw configuration from a file or a recipe, or an empty one, and where it comes from, for messages.

    Args:
        command: The command.
        families: The installed families.
        family: Name of a family, or ``"auto"``.
        has_model: Whether the command line names a model; it makes no difference here.
        config_file: The file, if given.
        recipe: The recipe, if given.
        allow_ignored: With a file of another program, ignore features that llmctl does not support.
    """
    if config_file is not None and recipe is not None:
        raise click.UsageError("give CONFIG or --recipe, not both")
    if config_file is not None:
        return read_config_file(config_file, command, allow_ignored), str(config_file)
    if recipe is None:
        return {}, "the command line"
    return read_recipe(None if family == "auto" else families.load(family), recipe, command)


def recipe_header(command: str, families: plugins.Families, family: str, recipe: str | None) -> list[str]:
    """Header lines for a printed recipe: its description and the command that runs it; empty without a recipe.

    Args:
        command: The command.
        families: The installed families.
        family: Name of a family or ``"auto"``.
        recipe: The recipe; None = the starter of ``finetune``, if the family has one.
    """
    plugin = None if family == "auto" else families.load(family)
    name = recipe or (plugin.card.starter if plugin and command == "finetune" else "")
    return recipes(plugin, command)[name].header().splitlines() if name else []


def of_checkpoint(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for a checkpoint: without what it says about a new model."""
    model = {key: value for key, value in recipe.get("model", {}).items() if key not in NEW_MODEL}
    return {**recipe, "model": model}


def output_settings(output: str | None, resume: bool, overwrite: bool) -> list[str]:
    """The options --output, --resume and --overwrite as assignments of ``--set``."""
    switches = {"dir": output, "resume": resume or None, "overwrite": overwrite or None}
    return [f"output.{key}={json.dumps(value)}" for key, value in switches.items() if value is not None]


def _offered(card: Family, recipe: str) -> bool:
    return not any(isinstance(state(card, method), Unsupported) for method in METHODS[recipe])


def _given(data: dict[str, Any], key: str) -> bool:
    section, _, name = key.partition(".")
    return name in data.get(section, {})


def _comments(lines: list[str]) -> int:
    """Number of comment lines at the top."""
    return next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))

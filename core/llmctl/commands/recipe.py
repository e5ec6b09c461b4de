"""Recipes: ready configurations inside a family's package, ``recipes/`` for fine-tuning, ``recipes/COMMAND/`` else.

A package of several families keeps there what fits them all, and in a folder FAMILY of either what is of one alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from llmctl import plugins
from llmctl.commands.config_source import read_config_file
from llmctl.config import file
from llmctl.errors import ConfigError


class NoStarter(ConfigError):
    """Neither a file nor a recipe is given, and the family has no recipe that runs without."""


def recipe_names(plugin: plugins.Plugin, kind: str = "") -> list[str]:
    """Names of a family's recipes; ``kind`` as for `read_recipe`."""
    return sorted(recipe_files(plugin, kind))


def recipe_files(plugin: plugins.Plugin, kind: str) -> dict[str, Path]:
    """Files by name; the family's own come before those of its package."""
    folder = plugin.folder / "recipes" / kind
    return {path.stem: path for place in (folder, folder / plugin.card.name) for path in place.glob("*.yaml")}


def read_recipe(plugin: plugins.Plugin, name: str, kind: str = "") -> tuple[dict[str, Any], str]:
    """The content of a family's recipe, and its origin for messages.

    Args:
        plugin: The family.
        name: The recipe.
        kind: Folder of the recipes of a command; empty = those for fine-tuning.

    Raises:
        ConfigError: The family has no such recipe.
    """
    known = recipe_files(plugin, kind)
    if name not in known:
        raise ConfigError(
            f"the family {plugin.card.name} has no {kind + ' ' if kind else ''}recipe {name!r}; it has "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    return file.read_file(known[name]), f"recipe {name} of {plugin.found}"


def find_source(
    kind: str,
    families: plugins.Families,
    family: str,
    config_file: Path | None,
    recipe: str | None,
    allow_ignored: bool,
) -> tuple[dict[str, Any], str]:
    """The configuration from a file, from a recipe of the family, or empty; and its origin for messages.

    Args:
        kind: The command, and folder of its recipes.
        families: The installed families.
        family: Name of a family or ``"auto"``.
        config_file: The file, if any.
        recipe: The recipe, if any.
        allow_ignored: Of a file of PaddleNLP's, leave out what is not offered here.
    """
    if config_file is not None and recipe is not None:
        raise click.UsageError("give CONFIG or --recipe, not both")
    if config_file is not None:
        return read_config_file(config_file, kind, allow_ignored), str(config_file)
    if recipe is None:
        return {}, "the command line"
    if family == "auto":
        raise click.UsageError(f"a recipe belongs to a family; name it: llmctl --model FAMILY {kind} --recipe NAME")
    return read_recipe(families.load(family), recipe, kind)


def output_settings(output: str | None, resume: bool, overwrite: bool) -> list[str]:
    """The switches that every run has, as ``--set`` would say them."""
    switches = {"dir": output, "resume": resume or None, "overwrite": overwrite or None}
    return [f"output.{key}={json.dumps(value)}" for key, value in switches.items() if value is not None]

"""Recipes: ready configurations inside a family's package, ``recipes/`` for fine-tuning, ``recipes/pretrain/`` for that."""

from __future__ import annotations

import json
from typing import Any

from llmctl import configfile, plugins
from llmctl.errors import ConfigError


def read_recipe(plugin: plugins.Plugin, name: str, kind: str = "") -> tuple[dict[str, Any], str]:
    """The content of a family's recipe, and its origin for messages.

    Args:
        plugin: The family.
        name: The recipe.
        kind: Folder of the recipes of a command; empty = those for fine-tuning.

    Raises:
        ConfigError: The family has no such recipe.
    """
    folder = plugin.folder / "recipes" / kind
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            f"the family {plugin.card.name} has no {kind + ' ' if kind else ''}recipe {name!r}; it has "
            f"{', '.join(known) or 'none'}"
        )
    return configfile.read_file(folder / f"{name}.yaml"), f"recipe {name} of {plugin.found}"


def output_settings(output: str | None, resume: bool, overwrite: bool) -> list[str]:
    """The switches that every run has, as ``--set`` would say them."""
    switches = {"dir": output, "resume": resume or None, "overwrite": overwrite or None}
    return [f"output.{key}={json.dumps(value)}" for key, value in switches.items() if value is not None]

"""``llmctl finetune``: reads and checks the configuration without paddle, then trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmctl import plugins
from llmctl.commands.config_source import read_config_file
from llmctl.commands.configured import configured
from llmctl.commands.recipe import NoStarter, read_recipe, recipe_names


def _source(
    families: plugins.Families, family: str, config_file: Path | None, recipe: str | None, allow_ignored: bool
) -> tuple[dict[str, Any], str]:
    if config_file is not None and recipe is not None:
        raise click.UsageError("give CONFIG or --recipe, not both")
    if config_file is not None:
        return read_config_file(config_file, "finetune", allow_ignored), str(config_file)
    if family == "auto":
        raise click.UsageError("without CONFIG, name a family: llmctl --model FAMILY finetune runs its starter recipe")
    plugin = families.load(family)
    name = recipe or plugin.card.starter
    if not name:
        known = ", ".join(recipe_names(plugin))
        remedy = f"give CONFIG, or --recipe with one of its recipes: {known}" if known else "give CONFIG"
        raise NoStarter(f"the family {family} has no starter recipe; {remedy}. --print-config shows every field")
    return read_recipe(plugin, name)


command = configured(
    "finetune",
    """Fine-tune a model on JSON lines of prompts (src) and answers (tgt).

    CONFIG is a YAML or JSON file; PaddleNLP's *_argument.json works too. Without CONFIG, the family's starter recipe runs: a small bundled model and task.
    """,
    _source,
    "Recipe of the family to run instead of CONFIG. [default: its starter recipe]",
)

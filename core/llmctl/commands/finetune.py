"""``llmctl finetune``: reads and checks the configuration without paddle, then trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmctl import plugins
from llmctl.commands.configured import configured
from llmctl.commands.recipe import NoStarter, find_source, read_recipe, recipes


def _source(
    families: plugins.Families,
    family: str,
    has_model: bool,
    config_file: Path | None,
    recipe: str | None,
    allow_ignored: bool,
) -> tuple[dict[str, Any], str]:
    if config_file is not None or recipe is not None or (family == "auto" and has_model):
        return find_source("finetune", families, family, has_model, config_file, recipe, allow_ignored)
    if family == "auto":
        raise click.UsageError(
            "without CONFIG, name a model: llmctl finetune --model FOLDER --set data.train=FILE; or a family: llmctl --model "
            "FAMILY finetune runs its starter recipe"
        )
    plugin = families.load(family)
    if not plugin.card.starter:
        known = ", ".join(recipes(plugin))
        remedy = f"give CONFIG, or --recipe with one of its recipes: {known}" if known else "give CONFIG"
        raise NoStarter(f"the family {family} has no starter recipe; {remedy}. --print-config shows every field")
    return read_recipe(plugin, plugin.card.starter)


command = configured(
    "finetune",
    """Fine-tune a model on prompts and answers, or on conversations.

    CONFIG is a YAML or JSON file; PaddleNLP's *_argument.json and LLaMA-Factory's YAML work too. Without CONFIG, the family's starter recipe runs: a small bundled model and task.
    """,
    _source,
    "Recipe of the family to run instead of CONFIG. [default: its starter recipe]",
)

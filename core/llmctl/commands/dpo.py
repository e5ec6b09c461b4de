"""``llmctl dpo``: reads and checks the configuration without paddle, then trains."""

from __future__ import annotations

from functools import partial

from llmctl.commands.configured import configured
from llmctl.commands.recipe import find_source

command = configured(
    "dpo",
    """Train a model with DPO on preference pairs: a chosen and a rejected answer to each prompt.

    CONFIG is a YAML or JSON file; PaddleNLP's *_argument.json and LLaMA-Factory's YAML work too. Every field can also be given with --set.
    """,
    partial(find_source, "dpo"),
    "Recipe of the family to run instead of CONFIG; give model and data with --set.",
)

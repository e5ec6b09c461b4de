"""``llmctl dpo``: reads and checks the configuration without paddle, then hands over to ``train.dpo``."""

from __future__ import annotations

from functools import partial

from llmctl.commands.configured import configured
from llmctl.commands.recipe import find_source

command = configured(
    "dpo",
    """Train a model to prefer the better of two answers, on JSON lines with src, tgt, response and sort.

    CONFIG is a YAML or JSON file, also one of PaddleNLP's (*_argument.json); everything can also be given with --set.
    """,
    partial(find_source, "dpo"),
    "A ready configuration of the family, to which --set adds model and data.",
)

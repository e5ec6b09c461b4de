"""``llmctl pretrain``: reads and checks the configuration without paddle, then hands over to ``train.pretrain``."""

from __future__ import annotations

from functools import partial

from llmctl.commands.configured import configured
from llmctl.commands.recipe import find_source

command = configured(
    "pretrain",
    """Train a model on corpora of token ids: a new one from scratch, or a checkpoint further.

    CONFIG is a YAML or JSON file, also one of PaddleNLP's (*_argument.json); everything can also be given with --set. Corpora are made by llmctl data build.
    """,
    partial(find_source, "pretrain"),
    "A ready configuration of the family, to which --set adds corpora and tokenizer.",
)

"""``llmctl pretrain``: reads and checks the configuration without paddle, then trains."""

from __future__ import annotations

from functools import partial

from llmctl.commands.configured import configured
from llmctl.commands.recipe import find_source

command = configured(
    "pretrain",
    """Pretrain a model on tokenized corpora, from scratch or from a checkpoint.

    CONFIG is a YAML or JSON file; PaddleNLP's *_argument.json and LLaMA-Factory's YAML work too. Every field can also be given with --set. llmctl data build makes the corpora.
    """,
    partial(find_source, "pretrain"),
    "Recipe of the family to run instead of CONFIG; give corpora and tokenizer with --set.",
)

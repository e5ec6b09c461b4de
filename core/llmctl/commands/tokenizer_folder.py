"""The value of an option that names a model for its tokenizer: a folder, or a name on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmctl.checkpoint.locate import locate


class TokenizerFolder(click.Path):
    """A folder that exists; of a model on a hub, configuration and tokenizer are downloaded, not the weights."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The folder."""
        return super().convert(locate(value, weights=False), param, ctx)

"""MODEL on the command line: a checkpoint, an adapter with its base, or a model with an adapter named beside it.

Files are checked without paddle; layers are loaded when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from llmctl.adapters.folder import Opened
    from llmctl.card.dims import Dims
    from llmctl.plugins import Plugin

Command = TypeVar("Command", bound=Callable[..., Any])


def adapter_options(command: Command) -> Command:
    """Options that apply an adapter to MODEL."""
    for option in (
        click.option(
            "--allow-other-base", is_flag=True, help="Allow an adapter on a model that it was not trained on."
        ),
        click.option(
            "--base",
            type=click.Path(path_type=Path),
            help="If MODEL is an adapter: folder of its base model, if it has moved.",
        ),
        click.option(
            "--adapter", type=click.Path(path_type=Path), help="Folder of a LoRA adapter or prefix for MODEL."
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class ModelSource:
    """A model that has been looked at, not loaded.

    Attributes:
        folder: Of the checkpoint; of an adapter, of its base.
        plugin: Its family.
        dims: Its dims.
        adapted: The adapter, or None.
    """

    folder: Path
    plugin: Plugin
    dims: Dims
    adapted: Opened | None

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is: with the adapter that was trained with it, or with the model."""
        from llmctl.adapters.folder import tokenizer_folder

        return tokenizer_folder(self.adapted.folder, self.folder) if self.adapted else self.folder

    def layer(self, merged: bool = False) -> Any:
        """The layer with its adapter.

        Args:
            merged: A low-rank adapter becomes part of the weights.
        """
        if self.adapted is not None:
            from llmctl.adapters.attach import adapted_model, merged_model

            return merged_model(self.adapted) if merged else adapted_model(self.adapted)
        from llmctl.checkpoint.build import load_model

        return load_model(self.folder, self.plugin.card.name)[0]


def open_model(
    model: Path, family: str, adapter: Path | None, base: Path | None, allow_other_base: bool
) -> ModelSource:
    """What MODEL and the adapter options stand for.

    Raises:
        LlmctlError: A folder is not what it should be, or options contradict each other.
    """
    from llmctl import plugins
    from llmctl.adapters.folder import is_adapter, open_adapter
    from llmctl.checkpoint.hf_config import read_config

    under: Path | None = model
    if is_adapter(model):
        if adapter:
            raise click.UsageError(f"{model} holds an adapter itself; leave out --adapter, or name a model as MODEL")
        adapter, under = model, base
    elif base or (allow_other_base and not adapter):
        raise click.UsageError(f"--base and --allow-other-base are for adapters; {model} holds none")
    if adapter:
        opened = open_adapter(adapter, under, family, allow_other_base)
        return ModelSource(opened.base, opened.plugin, opened.dims, opened)
    config = read_config(model)
    where = str(model / "config.json")
    plugin = plugins.resolve(family, config, where)
    return ModelSource(model, plugin, plugin.card.dims_from_config(config, where), None)

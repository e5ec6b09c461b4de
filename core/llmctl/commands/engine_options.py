"""Options of the inference engines, shared by several commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from llmctl.errors import ConfigError
from llmctl.infer.options import ENGINES, KV, WEIGHTS, EngineOptions

Command = TypeVar("Command", bound=Callable[..., Any])

WEIGHTS_HELP = "Data type of the weights (fused). [default: that of the checkpoint]"
GROUP_HELP = "Quantization group size of int8 and int4 weights (fused)."


class CommandLineOptions(EngineOptions):
    """Engine options that messages spell as on the command line."""

    def spell(self, name: str, value: object = None) -> str:
        """``--cache-memory 2GB``; adapters by name are ``--adapter NAME=FOLDER``."""
        flag = f"--{name.replace('_', '-')}"
        if value is None or value is True:
            return flag
        return f"{flag} {'NAME=FOLDER' if isinstance(value, Mapping) else value}"


def options_of(given: Mapping[str, Any], **more: Any) -> CommandLineOptions:
    """Engine options from the values of a command's options.

    Args:
        given: Values by parameter; others than engine options are left out.
        **more: Values that override those.
    """
    names = {row.name for row in fields(EngineOptions)}
    return CommandLineOptions(**{name: value for name, value in given.items() if name in names} | more)


def adapters_of(texts: Sequence[str]) -> Path | dict[str, Path] | None:
    """The value of ``adapter`` from the texts of ``--adapter``: a folder for every prompt, or folders by name.

    Raises:
        ConfigError: A name is missing or given twice, or several adapters have no names.
    """
    named = dict(text.split("=", 1) for text in texts if "=" in text and not Path(text).exists())
    plain = [text for text in texts if "=" not in text or Path(text).exists()]
    if len(named) + len(plain) < len(texts):
        raise ConfigError("--adapter gives a name twice; each adapter needs its own")
    if "" in named:
        raise ConfigError("--adapter =FOLDER: the name is missing")
    if plain and (named or len(plain) > 1):
        raise ConfigError("several adapters need names: --adapter NAME=FOLDER")
    if plain:
        return Path(plain[0])
    return {name: Path(folder) for name, folder in named.items()} or None


def show_notes(notes: Sequence[str]) -> None:
    """Prints the notes of an engine on standard error."""
    for note in notes:
        click.echo(note, err=True)


def engine_options(command: Command) -> Command:
    """Options that choose the engine, and the types of weights and KV cache of the fused engine."""
    return _with(
        command,
        click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True,
                     help="fused: continuous batching with packed weights; dynamic: the paddle model; static: an exported program."),
        click.option("--weights", type=click.Choice(WEIGHTS), help=WEIGHTS_HELP),
        click.option("--group", type=int, metavar="N", help=GROUP_HELP),
        click.option("--kv", type=click.Choice(KV),
                     help="Data type of the KV cache (fused). [default: float16; float32 for very small models]"),
        click.option("--cache-memory", metavar="SIZE",
                     help="Limit of the KV cache: a size such as 2GB, or a share of the free memory such as 0.5 (fused). "
                     "[default: what is needed, up to 0.5]"),
    )  # fmt: skip


def search_options(command: Command) -> Command:
    """Options of speculative decoding and beam search."""
    return _with(
        command,
        click.option("--speculate", type=click.IntRange(1), metavar="N",
                     help="Speculative decoding by prompt lookup, up to N draft tokens; answers do not change (fused)."),
        click.option("--beams", type=click.IntRange(2), help="Number of beams of beam search (fused)."),
        click.option("--length-penalty", type=float, help="With --beams: above 0 favors longer answers. [default: 1.0]"),
    )  # fmt: skip


def adapter_options(command: Command) -> Command:
    """Options that apply an adapter to MODEL."""
    return _with(
        command,
        click.option("--adapter", metavar="FOLDER", type=click.Path(path_type=Path), help="Folder of a LoRA adapter or prefix for MODEL."),
        click.option("--base", metavar="FOLDER", type=click.Path(path_type=Path),
                     help="If MODEL is an adapter: folder of its base model, if it has moved."),
        click.option("--allow-other-base", is_flag=True, help="Allow an adapter on a model that it was not trained on."),
    )  # fmt: skip


def _with(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command

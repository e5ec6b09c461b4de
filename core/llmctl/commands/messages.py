"""How much a command says on standard error: notes by default, nothing with ``--quiet``, details with ``--verbose``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from llmctl.io import progress

Command = TypeVar("Command", bound=Callable[..., Any] | click.Command)

KEY = "llmctl.messages"


@dataclass(frozen=True)
class Messages:
    """What a command says besides its results.

    Attributes:
        quiet: Nothing but warnings and errors.
        verbose: Also details.
        json: Results are JSON lines on standard output.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False

    def note(self, text: str) -> None:
        """Prints what a user should know."""
        if not self.quiet:
            click.echo(text, err=True)

    def notes(self, texts: Iterable[str]) -> None:
        """Prints several notes."""
        for text in texts:
            self.note(text)

    def result(self, text: str, event: str = "end", **values: Any) -> None:
        """Prints what was done on standard output, in words or as an object of JSON."""
        if self.json:
            click.echo(json.dumps({"event": event, **values}, ensure_ascii=False, default=str))
        elif not self.quiet:
            click.echo(text)

    def detail(self, text: str) -> None:
        """Prints what a user who asks wants to know."""
        if self.verbose:
            click.echo(text, err=True)


def messages(ctx: click.Context) -> Messages:
    """What the options of a command ask for."""
    return Messages(*(bool(ctx.meta.get(f"{KEY}.{name}")) for name in ("quiet", "verbose", "json")))


def _keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[f"{KEY}.{param.name}"] = value
    if value and param.name == "quiet":
        ctx.with_resource(progress.silent())
    if messages(ctx).quiet and messages(ctx).verbose:
        raise click.UsageError("--quiet and --verbose exclude each other; give one", ctx)


def results(command: Command) -> Command:
    """The options ``--json``, ``--quiet`` and ``--verbose`` as a decorator."""
    text = "Print JSON lines to standard output, an object for each event, instead of words."
    return verbosity(
        click.option("--json", "json", is_flag=True, expose_value=False, callback=_keep, help=text)(command)
    )


def verbosity(command: Command) -> Command:
    """The options ``--quiet`` and ``--verbose`` as a decorator; ``messages`` gives the command what they say."""
    for name, text in (
        ("verbose", "Also print details, such as where each setting comes from."),
        ("quiet", "Print no notes and no progress; warnings and errors are printed."),
    ):
        command = click.option(
            f"--{name}", f"-{name[0]}", name, is_flag=True, expose_value=False, callback=_keep, help=text
        )(command)
    return command

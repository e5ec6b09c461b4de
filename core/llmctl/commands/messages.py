"""How much a command says on standard error: notes by default, nothing with ``--quiet``, details with ``--verbose``."""

from __future__ import annotations

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
    """

    quiet: bool = False
    verbose: bool = False

    def note(self, text: str) -> None:
        """Prints what a user should know."""
        if not self.quiet:
            click.echo(text, err=True)

    def notes(self, texts: Iterable[str]) -> None:
        """Prints several notes."""
        for text in texts:
            self.note(text)

    def detail(self, text: str) -> None:
        """Prints what a user who asks wants to know."""
        if self.verbose:
            click.echo(text, err=True)


def messages(ctx: click.Context) -> Messages:
    """What the options of a command ask for."""
    quiet, verbose = (bool(ctx.meta.get(f"{KEY}.{name}")) for name in ("quiet", "verbose"))
    return Messages(quiet, verbose)


def _keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[f"{KEY}.{param.name}"] = value
    if value and param.name == "quiet":
        ctx.with_resource(progress.silent())
    if messages(ctx) == Messages(True, True):
        raise click.UsageError("--quiet and --verbose exclude each other; give one", ctx)


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

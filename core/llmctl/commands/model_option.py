"""The option ``--model``: a family, or a model by its folder or its name on a hub, before the name of the command or after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click

NAME = "chosen_model"
"""Name of the option among the parameters of a command."""

Command = TypeVar("Command", bound=Callable[..., Any] | click.Command)


@dataclass(frozen=True)
class ModelOption:
    """What was given as ``--model``. Nothing is looked up before it is needed.

    Attributes:
        text: The text; empty = nothing.
    """

    text: str = ""

    @property
    def family(self) -> str:
        """The family that is named, or ``auto``: that of the model's config.json."""
        return self.text if self.text and not self.names_folder else "auto"

    @cached_property
    def names_folder(self) -> bool:
        """Whether the text is that of a folder or of a model on a hub. What an installed family is called is the family."""
        from llmctl.plugins import Families

        if self.text in ("", "auto") or self.text in Families().names:
            return False
        return "/" in self.text or ":" in self.text or self.text in (".", "..", "~") or Path(self.text).is_dir()

    def folder_or(self, argument: Path | None, name: str = "MODEL", weights: bool = True) -> Path:
        """The folder of a command's argument, or the one of the option.

        Args:
            argument: The argument; None = it was left out.
            name: Its name in messages.
            weights: As for ``locate``.

        Raises:
            click.UsageError: Neither is given, or both and they differ.
            LlmctlError: As ``locate``.
        """
        from llmctl.checkpoint.locate import locate
        from llmctl.plugins import Families

        if argument is None:
            if not self.names_folder:
                named = self.family if self.family in Families().names else ""
                if self.family not in ("auto", named):
                    raise click.UsageError(f"--model {self.text} is neither a folder nor an installed family")
                hint = f"; {named} is a family" if named else ""
                raise click.UsageError(f"{name} is missing: name the folder of a model, here or with --model{hint}")
            return locate(self.text, weights=weights)
        found = locate(argument, weights=weights)
        if self.names_folder and locate(self.text, weights=weights).resolve() != found.resolve():
            raise click.UsageError(f"{name} is {argument} and --model is {self.text}; give one of them")
        return found


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    from llmctl.plugins import Families

    names = ["auto", *Families().names]
    folders = [CompletionItem(incomplete, type="dir")] if "/" in incomplete or incomplete.startswith((".", "~")) else []
    return [*(CompletionItem(name) for name in names if name.startswith(incomplete)), *folders]


def _take(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Makes the value the object of the context."""
    before = ctx.find_object(ModelOption) or ModelOption()
    if value is not None and before.text not in ("", value):
        raise click.UsageError(f"--model is given twice: {before.text} and {value}; give one of them", ctx)
    ctx.obj = before if value is None else ModelOption(value)


def model_option(
    text: str = "The model: a folder, or a family as listed by `llmctl models`.",
) -> Callable[[Command], Command]:
    """The option as a decorator; the command finds a ``ModelOption`` in ``ctx.obj``.

    Args:
        text: Its help text.
    """
    return click.option(
        "--model",
        NAME,
        metavar="MODEL",
        expose_value=False,
        callback=_take,
        shell_complete=_complete,
        help=text,
    )

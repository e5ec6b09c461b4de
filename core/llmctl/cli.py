"""The command line: a click group that imports a command's module only when that command runs.

Every mistake of the user (``LlmctlError``) ends here as a message on standard error and exit code 2; Ctrl-C as 130.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from importlib import metadata
from typing import Any

import click

from llmctl._version import __version__
from llmctl.errors import LlmctlError

COMMANDS_GROUP = "llmctl.commands"
COMMANDS = {
    "bench": ("llmctl.commands.bench:command", "Measure how fast a model answers on this machine."),
    "convert": ("llmctl.commands.convert:command", "Convert a model folder to another layout or dtype."),
    "data": ("llmctl.commands.data:group", "Make and inspect training data."),
    "dpo": ("llmctl.commands.dpo:command", "Train a model to prefer the better of two answers."),
    "env": ("llmctl.commands.env:command", "Show versions, threads and other settings of this machine."),
    "export": ("llmctl.commands.export:command", "Export a model as a program for another machine."),
    "finetune": ("llmctl.commands.finetune:command", "Fine-tune a model on questions and answers."),
    "generate": ("llmctl.commands.generate:command", "Generate text from prompts, a file or a chat."),
    "merge": ("llmctl.commands.merge:command", "Merge an adapter into its base model."),
    "migrate": ("llmctl.commands.migrate:command", "Convert a configuration of PaddleNLP's llm toolkit."),
    "models": ("llmctl.commands.models:command", "List installed families, explain one, or show what they support."),
    "ops": ("llmctl.commands.ops:command", "Check the compiled operators of this machine."),
    "new-plugin": ("llmctl.commands.new_plugin:command", "Make the skeleton of a plugin for a new family."),
    "pretrain": ("llmctl.commands.pretrain:command", "Train a model on corpora of token ids."),
    "plan": ("llmctl.commands.plan:command", "Tell what memory a training run will need."),
    "report": ("llmctl.commands.report:command", "Write a run's report anew, or compare several runs."),
}
"""Core's own commands: where each is and its line in the help."""


class LazyGroup(click.Group):
    """A group whose commands are named here and imported on use; distributions may add some by entry point."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, none imported."""
        return sorted({*COMMANDS, *_added()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            found: click.Command = getattr(importlib.import_module(module), attribute)
            return found
        if cmd_name in _added():
            return _load_added(cmd_name)
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that the arguments name, or an error with the nearest name."""
        import difflib

        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands from the table, importing none of them."""
        rows = [(name, COMMANDS[name][1] if name in COMMANDS else f"From {_added()[name].value}.")
                for name in self.list_commands(ctx)]  # fmt: skip
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _added() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=COMMANDS_GROUP) if entry.name not in COMMANDS}


def _load_added(name: str) -> click.Command:
    entry = _added()[name]
    try:
        found: click.Command = entry.load()
    except Exception as error:
        if os.environ.get("LLMCTL_STRICT") == "1":
            raise
        owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        raise LlmctlError(
            f"the command {name!r} of {owner} cannot be loaded: {type(error).__name__}: {error}; reinstall {owner}"
        ) from error
    return found


def _complete_family(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from llmctl import plugins

    return [
        name for name in ["auto", *sorted({found.name for found in plugins.installed()})] if name.startswith(incomplete)
    ]


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--model",
    "family",
    metavar="FAMILY",
    default="auto",
    shell_complete=_complete_family,
    help="Model family, e.g. as listed by `llmctl models`; auto (the default) = from the checkpoint's config.json.",
)
@click.version_option(__version__, "--version", prog_name="llmctl")
@click.pass_context
def cli(ctx: click.Context, family: str) -> None:
    """LLM toolkit for PaddlePaddle: fine-tune and run language models, one plugin for each model family."""
    ctx.obj = {"family": family}


def _show_warning(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def main(args: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 a mistake of the user, 130 interrupted."""
    with warnings.catch_warnings():
        # paddle warns at import about a compiler cache that only its extension builder wants.
        warnings.filterwarnings("ignore", module=r"paddle")
        warnings.showwarning = _show_warning
        try:
            code = cli.main(args=args, prog_name="llmctl", standalone_mode=False)
        except LlmctlError as error:
            click.echo(f"error: {error}", err=True)
            code = 2
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            code = 130
        except BrokenPipeError:
            # The reader of our output has gone; a second complaint at exit would only confuse.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 141
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()

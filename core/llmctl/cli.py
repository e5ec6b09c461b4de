"""The command line: a click group that imports the module of a command only when that command runs.

A ``LlmctlError`` becomes a message on standard error and exit code 2, Ctrl-C exit code 130.
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
from llmctl.commands.model_option import NAME as MODEL_OPTION
from llmctl.commands.model_option import ModelOption, model_option
from llmctl.errors import LlmctlError
from llmctl.runtime import streams
from llmctl.runtime.distributions import entry_points
from llmctl.runtime.endings import ending

COMMANDS_GROUP = "llmctl.commands"
COMMANDS = {
    "bench": ("llmctl.commands.bench:command", "Benchmark inference on this machine: throughput, latency, memory."),
    "bench comm": ("llmctl.commands.bench_comm:command", "Measure how fast devices exchange tensors."),
    "chat": ("llmctl.commands.chat:command", "Chat with a model in the terminal."),
    "config-schema": (
        "llmctl.commands.config_schema:command",
        "Print the JSON Schema of configurations, for editors.",
    ),
    "convert": ("llmctl.commands.convert:command", "Convert a model folder to another layout or dtype."),
    "data": ("llmctl.commands.data:group", "Build, check and inspect training data."),
    "dpo": ("llmctl.commands.dpo:command", "Train a model on preference pairs (DPO)."),
    "env": ("llmctl.commands.env:command", "Show processor, memory, GPUs, versions, paths and settings."),
    "eval": ("llmctl.commands.eval:command", "Measure perplexity on text or answers, and compare models."),
    "export": ("llmctl.commands.export:command", "Export a model as a static program or as packed weights."),
    "finetune": ("llmctl.commands.finetune:command", "Fine-tune a model on prompts and answers (SFT)."),
    "generate": ("llmctl.commands.generate:command", "Generate text: prompts, files, chat."),
    "merge": ("llmctl.commands.merge:command", "Merge an adapter into its base model."),
    "migrate": ("llmctl.commands.migrate:command", "Convert a configuration of PaddleNLP or LLaMA-Factory."),
    "models": (
        "llmctl.commands.models:command",
        "List installed model families, describe one, or show the support matrix.",
    ),
    "ops": ("llmctl.commands.ops:command", "Check the compiled operators on this machine."),
    "new-plugin": ("llmctl.commands.new_plugin:command", "Create the skeleton of a plugin for a new model family."),
    "pretrain": ("llmctl.commands.pretrain:command", "Pretrain a model on tokenized corpora."),
    "plan": ("llmctl.commands.plan:command", "Estimate the memory of a training run."),
    "quantize": ("llmctl.commands.quantize:command", "Quantize a model to 4 or 8 bits."),
    "report": ("llmctl.commands.report:command", "Write the HTML report of a run, or compare several runs."),
    "request": ("llmctl.commands.request:command", "Ask a server with OpenAI's API."),
    "serve": ("llmctl.commands.serve:command", "Serve a model over HTTP: OpenAI's API."),
    "verify": ("llmctl.commands.verify:command", "Compare the files of a model or run with their checksums."),
}
"""Core's own commands: name -> (``module:attribute``, line in the help)."""


class LazyGroup(click.Group):
    """A group that imports its commands on use; distributions may add commands by entry point ``llmctl.commands``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands; imports none of them."""
        return sorted({*COMMANDS, *_added()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command of this name."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            found: click.Command = getattr(importlib.import_module(module), attribute)
            _refuse_idle_model(ctx, cmd_name, found)
            return found
        if cmd_name in _added():
            return _load_added(cmd_name)
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that the arguments name, or an error that suggests the nearest name."""
        import difflib

        two = " ".join(args[:2])
        if two in COMMANDS:
            return two, self.get_command(ctx, two), args[2:]
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"unknown command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands from the table; imports none of them."""
        rows = [(name, COMMANDS[name][1] if name in COMMANDS else f"From {_added()[name].value}.")
                for name in self.list_commands(ctx)]  # fmt: skip
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _refuse_idle_model(ctx: click.Context, name: str, command: click.Command) -> None:
    """Raises a usage error if ``--model`` stands before a command of core that has no use for it."""
    given = ctx.find_object(ModelOption)
    takes = isinstance(command, click.Group) or any(param.name == MODEL_OPTION for param in command.params)
    if given is not None and given.text and not takes:
        raise click.UsageError(f"--model has no effect on llmctl {name}; leave it out", ctx)


def _added() -> dict[str, metadata.EntryPoint]:
    """Commands of other distributions; core's own names are not taken over."""
    with warnings.catch_warnings():
        # Damaged metadata is reported where families are listed; a list of commands works without it.
        warnings.simplefilter("ignore")
        return {
            entry.point.name: entry.point
            for entry in entry_points()
            if entry.point.group == COMMANDS_GROUP and entry.point.name not in COMMANDS
        }


def _load_added(name: str) -> click.Command:
    entry = _added()[name]
    try:
        found: click.Command = entry.load()
    except (Exception, SystemExit) as error:
        if os.environ.get("LLMCTL_STRICT") == "1":
            raise
        owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        raise LlmctlError(
            f"the command {name!r} of {owner} cannot be loaded: {type(error).__name__}: {error}; reinstall {owner}"
        ) from error
    return found


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@model_option(
    "The model: a folder, a name on a hub, or a family as listed by `llmctl models`; also after the command. [default: the family of the "
    "model's config.json]"
)
@click.version_option(__version__, "--version", prog_name="llmctl")
def cli() -> None:
    """LLM toolkit for PaddlePaddle: train and run language models; each model family is a plugin."""


def _show_warning(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def _system_error(error: Exception) -> tuple[str, int]:
    """What to say of an error of the system that no command explained; ``LLMCTL_STRICT=1`` shows where it came from."""
    if not isinstance(error, OSError) or os.environ.get("LLMCTL_STRICT") == "1":
        raise error
    file = f"{error.filename}: " if error.filename is not None else ""
    return f"error: {file}{error.strerror or error}", 2


def _message(error: click.ClickException) -> str:
    """An error of click in the form of all others, with the command whose help lists the options."""
    text = error.format_message().rstrip(".")
    words = text.split(" ", 1)
    if words[0].istitle() or words[0] == "Got":
        text = text[0].lower() + text[1:]
    ctx = getattr(error, "ctx", None)
    if ctx and _has_settings(ctx.command) and (text.startswith("got unexpected") or _unlike_any(error)):
        text += "; fields of the configuration are set with --set SECTION.KEY=VALUE, such as --set train.batch_size=4"
    hint = f"\n{ctx.command_path} --help lists arguments and options" if ctx else ""
    return f"error: {text}{hint}"


def _has_settings(command: click.Command) -> bool:
    return any("--set" in param.opts for param in command.params)


def _unlike_any(error: click.ClickException) -> bool:
    """Whether an option is not known, nor like one that is."""
    return isinstance(error, click.NoSuchOption) and not error.possibilities


def main(args: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 success, 2 user error, 130 interrupted."""
    streams.prepare()
    if "_LLMCTL_COMPLETE" in os.environ:
        from llmctl.commands import completion

        completion.register()
    with warnings.catch_warnings():
        # On import, paddle warns that ccache is missing, which matters only for building extensions.
        warnings.filterwarnings("ignore", module=r"paddle")
        warnings.showwarning = _show_warning
        try:
            code = cli.main(args=args, prog_name="llmctl", standalone_mode=False)
        except click.ClickException as error:
            click.echo(_message(error), err=True)
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            code = 130
        except Exception as error:
            said, code = ending(error) or _system_error(error)
            click.echo(said, err=True, nl=bool(said))
        code = streams.flush(code if isinstance(code, int) else 0)
    sys.exit(code)


if __name__ == "__main__":
    main()

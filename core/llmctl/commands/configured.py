"""The commands ``finetune``, ``dpo`` and ``pretrain``: read a configuration, apply overrides, then print, check or run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from llmctl.api import training
from llmctl.commands.completion import complete_recipe, complete_setting
from llmctl.commands.recipe import NoStarter, output_settings, recipe_header
from llmctl.config import schema
from llmctl.errors import require_installed
from llmctl.plugins import Families
from llmctl.train.interrupt import Interrupted

ConfigSource = Callable[[Families, str, Path | None, str | None, bool], tuple[dict[str, Any], str]]
"""(families, family, file, recipe, allow_ignored) -> (raw configuration, where it comes from, for messages)."""

SET = "Override a field; may be repeated."


def configured(name: str, doc: str, source: ConfigSource, recipe_help: str) -> click.Command:
    """A command that reads and checks a configuration without paddle, then trains.

    Args:
        name: Its name, one of ``jobs.registry.COMMANDS``.
        doc: Its help text.
        source: Finds the configuration.
        recipe_help: Help text of ``--recipe``.
    """

    def callback(
        ctx: click.Context, config_file: Path | None, recipe: str | None, assignments: tuple[str, ...],
        output: str | None, resume: bool, overwrite: bool, print_config: bool, check: bool, allow_ignored: bool,
    ) -> None:  # fmt: skip
        family, families = ctx.obj["family"], Families()
        if print_config and config_file is None and recipe is None and family == "auto":
            data, where = dict[str, Any](), "the command line"
        else:
            try:
                data, where = source(families, family, config_file, recipe, allow_ignored)
            except NoStarter:
                if not print_config:
                    raise
                data, where = {}, "the command line"
        given = [*assignments, *output_settings(output, resume, overwrite)]
        config = training.make_config(name, data, given, where)
        if print_config:
            about = [] if config_file is not None else recipe_header(name, families, family, recipe)
            run = f"{'Or, with this file' if about else 'Run with'}: llmctl --model {family} {name} CONFIG"
            click.echo(schema.to_yaml(config, "\n".join([*about, run])), nl=False)
            return
        if not check:
            require_installed("paddle", "cpu", f"llmctl {name}")
        job = training.check_job(name, config, family, families)
        if check:
            click.echo("\n".join([*job.notes, f"ok: {job.summary()}"]))
            return
        try:
            training.run_job(job)
        except Interrupted as stop:
            ctx.exit(stop.exit_code)

    return click.Command(name, callback=click.pass_context(callback), params=_parameters(recipe_help), help=doc)


def _parameters(recipe_help: str) -> list[click.Parameter]:
    switches = {
        "--resume": "Continue from the newest checkpoint in the output folder.",
        "--overwrite": "Delete the results of an earlier run in the output folder.",
        "--print-config": "Print the complete configuration with a comment on every field, and exit.",
        "--check": "Check the configuration, model and data, and exit.",
        "--allow-ignored": "With a PaddleNLP file: ignore features that llmctl does not support.",
    }
    return [
        click.Argument(["config_file"], metavar="[CONFIG]", required=False, type=click.Path(path_type=Path)),
        click.Option(["--recipe"], shell_complete=complete_recipe, help=recipe_help),
        click.Option(
            ["--set", "assignments"], multiple=True, metavar="a.b=c", shell_complete=complete_setting, help=SET
        ),
        click.Option(["--output"], help="Output folder; the same as --set output.dir=FOLDER."),
        *(click.Option([name], is_flag=True, help=text) for name, text in switches.items()),
    ]

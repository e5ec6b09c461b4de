"""``llmctl migrate``: converts a configuration of PaddleNLP's llm toolkit, and prints the result."""

from __future__ import annotations

from pathlib import Path

import click

from llmctl.commands.model_option import model_option
from llmctl.config import file
from llmctl.errors import ConfigError


@click.command()
@click.argument("old", metavar="OLD.json", type=click.Path(path_type=Path))
@click.option(
    "--allow-ignored", is_flag=True, help="Leave out features that llmctl does not support; comments list them."
)
@model_option("The family, as listed by `llmctl models`.")
@click.pass_context
def command(ctx: click.Context, old: Path, allow_ignored: bool) -> None:
    """Convert PaddleNLP's *_argument.json and print the result.

    The first line says which command runs it; the comments after it say what was left out and why.
    """
    from llmctl.migrate.convert import is_old, migrate, to_yaml

    data = file.read_file(old)
    if not is_old(data):
        raise ConfigError(f"{old} is not a PaddleNLP configuration: it has no model_name_or_path or no output_dir")
    click.echo(to_yaml(migrate(data, str(old), allow_ignored), ctx.obj.family), nl=False)

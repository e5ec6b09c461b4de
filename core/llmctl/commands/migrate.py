"""``llmctl migrate``: converts a configuration of another program, and prints the result."""

from __future__ import annotations

from pathlib import Path

import click

from llmctl.commands.model_option import model_option
from llmctl.config import file
from llmctl.errors import ConfigError


@click.command()
@click.argument("old", metavar="OLD", type=click.Path(path_type=Path))
@click.option(
    "--allow-ignored", is_flag=True, help="Leave out features that llmctl does not support; comments list them."
)
@model_option("The family, as listed by `llmctl models`.")
@click.pass_context
def command(ctx: click.Context, old: Path, allow_ignored: bool) -> None:
    """Convert PaddleNLP's *_argument.json or LLaMA-Factory's YAML, and print the result.

    The first line says which command runs it; the comments after it say what was left out and why.
    """
    from llmctl.migrate.convert import migrate, to_yaml
    from llmctl.migrate.dialects import dialect_of

    data = file.read_file(old)
    if dialect_of(data) is None:
        raise ConfigError(
            f"{old} is a configuration neither of PaddleNLP nor of LLaMA-Factory: it has no model_name_or_path or no output_dir"
        )
    click.echo(to_yaml(migrate(data, str(old), allow_ignored), ctx.obj.family), nl=False)

"""``llmctl finetune``: reads and checks the configuration without paddle, then hands over to ``train.sft``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmctl import config as configs
from llmctl import configfile, plugins
from llmctl.commands.config_source import read_config_file
from llmctl.commands.recipe import output_settings, read_recipe
from llmctl.errors import ConfigError


@click.command()
@click.argument("config_file", metavar="[CONFIG]", required=False, type=click.Path(path_type=Path))
@click.option("--recipe", help="A ready configuration of the family; without CONFIG the default is its starter.")
@click.option("--set", "assignments", multiple=True, metavar="a.b=c", help="Override a value; may be repeated.")
@click.option("--output", "output", help="Output folder; the same as --set output.dir=FOLDER.")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint in the output folder.")
@click.option("--overwrite", is_flag=True, help="Delete what an earlier run left in the output folder.")
@click.option("--print-config", is_flag=True, help="Print the complete configuration with its documentation, and stop.")
@click.option("--check", is_flag=True, help="Check the configuration, model and data, and stop.")
@click.option("--allow-ignored", is_flag=True, help="Of a file of PaddleNLP's, leave out what is not offered here.")
@click.pass_context
def command(
    ctx: click.Context,
    config_file: Path | None,
    recipe: str | None,
    assignments: tuple[str, ...],
    output: str | None,
    resume: bool,
    overwrite: bool,
    print_config: bool,
    check: bool,
    allow_ignored: bool,
) -> None:
    """Fine-tune a model on JSON lines with src and tgt.

    CONFIG is a YAML or JSON file, also one of PaddleNLP's (*_argument.json). Without one, the family's starter recipe runs: a small bundled model and task.
    """
    family = ctx.obj["family"]
    given = output_settings(output, resume, overwrite)
    if print_config and config_file is None and recipe is None and family == "auto":
        data: dict[str, Any] = {}
        where = "the command line"
    else:
        data, where = _source(family, config_file, recipe, allow_ignored)
    config = configs.build(configs.FinetuneConfig, configfile.override(data, [*assignments, *given]), where)
    if print_config:
        click.echo(configs.to_yaml(config, f"Run with: llmctl --model {family} finetune CONFIG"), nl=False)
        return
    from llmctl import preflight

    job = preflight.finetune(config, family)
    if check:
        click.echo(f"ok: {job.summary()}")
        return
    from llmctl import runtime

    runtime.import_paddle("llmctl finetune")
    from llmctl.train import sft

    sft.run(job)


def _source(
    family: str, config_file: Path | None, recipe: str | None, allow_ignored: bool
) -> tuple[dict[str, Any], str]:
    if config_file is not None and recipe is not None:
        raise click.UsageError("give CONFIG or --recipe, not both")
    if config_file is not None:
        return read_config_file(config_file, "finetune", allow_ignored), str(config_file)
    if family == "auto":
        raise click.UsageError("without CONFIG, name a family: llmctl --model FAMILY finetune runs its starter recipe")
    plugin = plugins.load(family)
    name = recipe or plugin.card.starter
    if not name:
        raise ConfigError(
            f"the family {family} has no starter recipe; give CONFIG, or --recipe with one of its recipes"
        )
    return read_recipe(plugin, name)

"""``llmctl pretrain``: reads and checks the configuration without paddle, then hands over to ``train.pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmctl import config as configs
from llmctl import configfile, plugins
from llmctl.commands.config_source import read_config_file
from llmctl.commands.recipe import output_settings, read_recipe


@click.command()
@click.argument("config_file", metavar="[CONFIG]", required=False, type=click.Path(path_type=Path))
@click.option("--recipe", help="A ready configuration of the family, to which --set adds corpora and tokenizer.")
@click.option("--set", "assignments", multiple=True, metavar="a.b=c", help="Override a value; may be repeated.")
@click.option("--output", "output", help="Output folder; the same as --set output.dir=FOLDER.")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint in the output folder.")
@click.option("--overwrite", is_flag=True, help="Delete what an earlier run left in the output folder.")
@click.option("--print-config", is_flag=True, help="Print the complete configuration with its documentation, and stop.")
@click.option("--check", is_flag=True, help="Check the configuration, model and corpora, and stop.")
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
    """Train a model on corpora of token ids: a new one from scratch, or a checkpoint further.

    CONFIG is a YAML or JSON file, also one of PaddleNLP's (*_argument.json); everything can also be given with --set. Corpora are made by llmctl data build.
    """
    from llmctl.config_pretrain import PretrainConfig

    family = ctx.obj["family"]
    data, where = _source(family, config_file, recipe, allow_ignored)
    given = output_settings(output, resume, overwrite)
    config = configs.build(PretrainConfig, configfile.override(data, [*assignments, *given]), where)
    if print_config:
        click.echo(configs.to_yaml(config, f"Run with: llmctl --model {family} pretrain CONFIG"), nl=False)
        return
    from llmctl import preflight_pretrain

    job = preflight_pretrain.pretrain(config, family)
    if check:
        click.echo(f"ok: {job.summary()}")
        return
    from llmctl import runtime

    runtime.import_paddle("llmctl pretrain")
    from llmctl.train import pretrain

    pretrain.run(job)


def _source(
    family: str, config_file: Path | None, recipe: str | None, allow_ignored: bool
) -> tuple[dict[str, Any], str]:
    if config_file is not None and recipe is not None:
        raise click.UsageError("give CONFIG or --recipe, not both")
    if config_file is not None:
        return read_config_file(config_file, "pretrain", allow_ignored), str(config_file)
    if recipe is None:
        return {}, "the command line"
    if family == "auto":
        raise click.UsageError("a recipe belongs to a family; name it: llmctl --model FAMILY pretrain --recipe NAME")
    return read_recipe(plugins.load(family), recipe, "pretrain")

"""``llmctl config-schema``: the JSON Schema of configurations, by which editors complete and check YAML."""

from __future__ import annotations

import json

import click

from llmctl.jobs.registry import COMMANDS, resolve

CONFIGS = {
    **{name: command.config for name, command in COMMANDS.items()},
    "quantize": "llmctl.config.quantize:QuantizeConfig",
    "serve": "llmctl.config.serve:ServeConfig",
}
"""Command -> the class of its configuration."""


@click.command()
@click.argument("name", metavar="[COMMAND]", required=False, type=click.Choice(list(CONFIGS)))
def command(name: str | None) -> None:
    """Print the JSON Schema of the configurations of COMMAND: finetune, dpo, pretrain, quantize or serve; by default of any of them.

    Save it, and begin a configuration with `# yaml-language-server: $schema=FILE`: editors then complete and check its keys.
    """
    from llmctl.config.json_schema import any_of, json_schema

    names = [name] if name else list(CONFIGS)
    schemas = {it: json_schema(resolve(CONFIGS[it]), f"llmctl {it}") for it in names}
    found = schemas[name] if name else any_of(schemas, "llmctl")
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))

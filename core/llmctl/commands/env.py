"""``llmctl env``: versions and process settings, without importing the packages."""

from __future__ import annotations

import json
import platform
from importlib import metadata

import click

from llmctl import plugins, runtime
from llmctl._version import __version__
from llmctl.errors import DISTRIBUTION

PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "numpy", "tokenizers", "sentencepiece", "safetensors", "paddlenlp")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show versions, threads and other settings of this machine."""
    versions = {
        "llmctl": __version__,
        "python": platform.python_version(),
        **{p: _version(p) or "not installed" for p in PACKAGES},
    }
    families = {found.name: str(found) for found in plugins.installed()}
    settings = [dict(zip(("setting", "value", "source", "override"), row, strict=True)) for row in runtime.describe()]
    if as_json:
        click.echo(json.dumps({"versions": versions, "families": families, "runtime": settings}, indent=1))
        return
    if foreign := _version("llmctl"):
        click.echo(
            f"warning: the distribution llmctl {foreign} is another project's; ours is {DISTRIBUTION}. Remove it: "
            "pip uninstall llmctl, then install ours again",
            err=True,
        )
    for title, rows in (("versions", versions), ("families", families)):
        click.echo(title)
        click.echo("\n".join(f"  {name:<18} {value}" for name, value in rows.items()) or "  none")
    click.echo("runtime")
    for row in settings:
        click.echo(f"  {row['setting']:<18} {row['value']}  ({row['source']}; {row['override']})")


def _version(package: str) -> str:
    """The version of a distribution; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""

"""``llmctl new-plugin``: writes the skeleton of a family's distribution, which passes the conformance suite."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import click

from llmctl import plugins
from llmctl.errors import PluginError
from llmctl.io.atomic import atomic_folder
from llmctl.plugins.hookspecs import GROUP

FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "card.py.txt": "llmctl_@name@/__init__.py",
    "modeling.py.txt": "llmctl_@name@/modeling.py",
    "test.py.txt": "tests/test_@name@_conformance.py",
}
"""Template -> file of the new distribution."""


@click.command()
@click.argument("name")
@click.option(
    "--into",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Parent folder. [default: the current one]",
)
def command(name: str, into: Path) -> None:
    """Create the folder llmctl-NAME with a plugin for the model family NAME."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise PluginError(
            f"NAME={name!r} must start with a letter and consist of lower-case letters, digits and single '_'"
        )
    taken = [str(found) for found in plugins.installed() if found.name == name]
    if taken:
        raise PluginError(f"the family {name!r} is already installed by {taken[0]}; choose another name")
    dist = name.replace("_", "-")
    folder = into / f"llmctl-{dist}"
    if folder.exists():
        raise PluginError(f"{folder} already exists; choose another name or folder")
    camel = "".join(part.capitalize() for part in name.split("_"))
    values = {"@name@": name, "@dist@": dist, "@Name@": camel, "@group@": GROUP}
    templates = resources.files("llmctl") / "skeleton"
    lines = 0
    with atomic_folder(folder) as made:
        for template, target in FILES.items():
            file = made / _filled(target, values)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = _filled((templates / template).read_text(encoding="utf-8"), values)
            lines += text.count("\n")
            file.write_text(text, encoding="utf-8")
    click.echo(f"{folder} written, {lines} lines. Now:")
    click.echo(f"  pip install -e {folder} && pytest {folder}")
    click.echo(f"  llmctl models {name} --explain")


def _filled(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace(key, value)
    return text

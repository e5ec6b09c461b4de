"""``llmctl report``: writes the report of a run from its folder, or compares several runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folders", metavar="RUN_FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", "output", metavar="FILE", type=click.Path(path_type=Path),
              help="File to write. [default: report.html in the run's folder; comparison.html here for several]")  # fmt: skip
def command(folders: tuple[Path, ...], output: Path | None) -> None:
    """Write the report of a run as one HTML file, or compare several runs."""
    from llmctl.report.write import write

    click.echo(f"{write(folders, output)} written; open it in a browser")

"""The command line in this process, for tests that run a command of a family."""

from __future__ import annotations

from click.testing import CliRunner, Result


def run_cli(*args: object) -> Result:
    """Runs ``llmctl ARGS``; arguments are converted to text. An error of the user is in ``exception``."""
    from llmctl.cli import cli

    return CliRunner().invoke(cli, [str(arg) for arg in args])

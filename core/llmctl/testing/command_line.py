"""The command line in this process, for tests that run a command of a family, and the imports of a card in a fresh one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from click.testing import CliRunner, Result

HEAVY = ("paddle", "numpy", "rich")
"""Slow packages that no card imports, because ``--help`` and checks of jobs load cards."""


def run_cli(*args: object) -> Result:
    """Runs ``llmctl ARGS``; arguments are converted to text. An error of the user is in ``exception``."""
    from llmctl.cli import cli

    return CliRunner().invoke(cli, [str(arg) for arg in args])


def heavy_imports(family: str) -> list[str]:
    """The modules of ``HEAVY`` that loading a family imports."""
    code = (
        f"import json, sys; from llmctl import plugins; plugins.load({family!r}); print(json.dumps(list(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [name for name in HEAVY if name in json.loads(done.stdout.splitlines()[-1])]

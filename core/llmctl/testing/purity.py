"""Which slow packages loading a card imports, in a fresh process: none, because ``--help`` and checks of jobs load cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys

HEAVY = ("paddle", "numpy", "rich")


def heavy_imports(family: str) -> list[str]:
    """The modules of ``HEAVY`` that loading a family imports."""
    code = (
        f"import json, sys; from llmctl import plugins; plugins.load({family!r}); print(json.dumps(list(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [name for name in HEAVY if name in json.loads(done.stdout.splitlines()[-1])]

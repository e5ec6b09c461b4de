"""Fixtures that all tests share: the assets folder, the command line in a process of its own, fake distributions."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
FAKES = ROOT / "tests" / "plugins"

# A path that is missing may look like the name of a model; no test asks a server for it.
os.environ["HF_HUB_OFFLINE"] = "1"

# Shells ignore it in what they start in the background, and children would: tests of Ctrl-C could not interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of external models, data and goldens; a test that needs it is skipped without it."""
    folder = ROOT.parent / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip("the external assets are not beside the project")
    return folder


@pytest.fixture
def fakes(monkeypatch):
    """Puts fake distributions from tests/plugins on the import path: ``fakes("broken", "typo")``."""

    def add(*names: str) -> None:
        before = set(sys.modules)
        for name in names:
            assert (FAKES / name).is_dir(), name
            monkeypatch.syspath_prepend(str(FAKES / name))
        added.append(before)

    added: list[set[str]] = []
    yield add
    for before in added:
        for module in set(sys.modules) - before:
            if module.startswith("fake_"):
                del sys.modules[module]


@pytest.fixture
def run_llmctl():
    """Runs the command line in a process: ``run_llmctl("models", fakes=["broken"])`` -> CompletedProcess."""

    def run(*args: str, fakes=(), cwd=None, env=None, stdin=None, probe=None):
        paths = [str(FAKES / name) for name in fakes] + [os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(env or {})}
        code = f"import sys, llmctl.cli\ntry:\n    llmctl.cli.main({list(args)!r})\nfinally:\n    {probe or 'pass'}"
        command = [sys.executable, "-c", code] if probe else [sys.executable, "-m", "llmctl", *args]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env=environment, input=stdin, timeout=600, check=False
        )

    return run

"""What tests of the documentation's pages share: the commands and configuration that a page shows, run in this process."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from kit.readme import ROOT, STARTER, shown

from llmctl.cli import main

SHORT = {"train.max_steps": 2, "data.max_length": 128, "data.src_length": 64, "output.samples": 0}


def run(arguments):
    """Exit code and output of a command."""
    with CliRunner().isolation() as streams, pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code, b"".join(stream.getvalue() for stream in streams[:2]).decode()


def quick(settings):
    """Options that set values."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def config_of(page):
    """The configuration that a page shows."""
    return re.search(r"```yaml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)[1]


def lay_out(count):
    """A model and data of so many examples in the current folder, as the pages speak of them."""
    shutil.copytree(STARTER / "model", Path("path") / "to" / "model")
    Path("my-data").mkdir()
    for name in ("train", "dev"):
        lines = (STARTER / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (Path("my-data") / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def follow(page, training, settings, at_least):
    """Output by line of all commands of a page, run in order and found to work.

    Args:
        page: The page.
        training: Word of the commands that get ``settings``, unless they only check.
        settings: What makes it short.
        at_least: How many commands the page must show.
    """
    commands, said = shown(page), {}
    assert len(commands) >= at_least
    for line in commands:
        name, *words = shlex.split(line)
        assert name == "llmctl"
        short = quick(settings) if training in words and "--check" not in words else []
        code, said[line] = run([*words, *short])
        assert code == 0 and "Traceback" not in said[line], (line, said[line])
    return said

"""Commands that can be run next, as they are pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST = 120
"""Characters of a prompt in a command."""


def try_line(folder: Path, info: Mapping[str, Any]) -> str:
    """The command that asks a finished run's model: a held-out prompt if there is a short one, else it starts a chat.

    Args:
        folder: The output folder.
        info: The content of ``run.json``.
    """
    prompts = [str(sample.get("prompt", "")) for sample in info.get("after", {}).get("samples", [])]
    short = next((text for text in prompts if text.isprintable() and 0 < len(text) <= LONGEST and text != "-"), None)
    if short is None:
        asked = ["chat", str(folder)]
    else:
        asked = ["generate", str(folder), *([f"--prompt={short}"] if short.startswith("-") else ["--prompt", short])]
    return shlex.join(["llmctl", *_family(info), *asked])


def resume_line(folder: Path, info: Mapping[str, Any]) -> str:
    """The command that resumes a run.

    Args:
        folder: The output folder.
        info: The content of ``run.json``.
    """
    return shlex.join(["llmctl", *_family(info), str(info["task"]), str(folder / "config.yaml"), "--resume"])


def report_line(folder: Path) -> str:
    """The command that writes the report of a run again."""
    return shlex.join(["llmctl", "report", str(folder)])


def _family(info: Mapping[str, Any]) -> list[str]:
    family = str(info.get("family") or "auto")
    return [] if family == "auto" else ["--model", family]

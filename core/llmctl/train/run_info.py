"""The content of ``run.json``: how an output folder was made, so that it can be reproduced."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from llmctl.plugins.hookspecs import API

NAME = "run.json"


def run_info(
    config: Mapping[str, Any], card_hash: str, versions: Mapping[str, str], command: Sequence[str] | None = None
) -> dict[str, Any]:
    """The content of ``run.json`` that does not depend on the method, ready for JSON.

    Args:
        config: The whole configuration of the run, defaults included.
        card_hash: ``Family.hash()`` of the family's card.
        versions: Version by distribution: llmctl and the plugin's (``plugins.versions``).
        command: The command line; by default this process's.
    """
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(sys.argv if command is None else command),
        "versions": {**versions, **_environment()},
        "hook_api": ".".join(map(str, API)),
        "card_hash": card_hash,
        "config": dict(config),
    }


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("paddlepaddle", "paddlepaddle-gpu", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

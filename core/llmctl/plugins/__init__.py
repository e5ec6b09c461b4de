"""Model families as plugins: hook specifications, core's answers to them, the registry of what is installed.

The names of ``registry`` are found here on first use, so that a card that imports the hook specifications loads no more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmctl.plugins.registry import (
        Found,
        Plugin,
        card_of,
        installed,
        load,
        load_for,
        package_folder,
        resolve,
        versions,
    )

__all__ = [
    "Found",
    "Plugin",
    "card_of",
    "installed",
    "load",
    "load_for",
    "package_folder",
    "resolve",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("llmctl.plugins.registry"), name)

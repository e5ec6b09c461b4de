"""Model families as plugins: hook specifications, core's answers to them, the registry of what is installed.

The names of ``registry`` and ``loading`` are found here on first use, so that a card that imports the hook specifications
loads no more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmctl.plugins.loading import InstalledPlugin, Plugin, package_folder
    from llmctl.plugins.registry import Families, card_of, installed, load, load_for, resolve, versions

__all__ = [
    "Families",
    "InstalledPlugin",
    "Plugin",
    "card_of",
    "installed",
    "load",
    "load_for",
    "package_folder",
    "resolve",
    "versions",
]

_LOADING = ("InstalledPlugin", "Plugin", "package_folder")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "loading" if name in _LOADING else "registry"
    return getattr(importlib.import_module(f"llmctl.plugins.{module}"), name)

"""Model families as plugins: hook specifications, default implementations, the registry of installed families.

The names of ``registry`` and ``loading`` are imported on first use, so that a card which imports the hook specifications
loads nothing else.
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

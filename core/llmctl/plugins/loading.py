"""Loading one family plugin: importing its entry point, checking its hooks and its card.

Loading has no side effect besides the import and may be repeated.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pluggy

from llmctl.card.family import Family
from llmctl.card.validate import misnamed_class, validate
from llmctl.errors import DISTRIBUTION, PluginError
from llmctl.io.json_object import parse_json
from llmctl.plugins import defaults, hookspecs


@dataclass(frozen=True)
class InstalledPlugin:
    """An installed entry point, not imported."""

    name: str
    module: str
    distribution: str
    version: str
    api: int

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Plugin:
    """A loaded family: its card and its hooks, the plugin's own before core's defaults."""

    installed: InstalledPlugin
    card: Family
    hooks: Any

    @property
    def folder(self) -> Path:
        """The folder of the plugin's package, with its recipes and starter files."""
        return package_folder(self.installed)


def package_folder(found: InstalledPlugin) -> Path:
    """The folder of the package behind an entry point, found without importing it.

    Raises:
        PluginError: The package is not on the path.
    """
    spec = importlib.util.find_spec(found.module.partition(":")[0].partition(".")[0])
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"{found}: the package {found.module} is not on the path; reinstall {found.distribution}")
    return Path(next(iter(spec.submodule_search_locations)))


def load_installed(found: InstalledPlugin) -> Plugin:
    """The plugin behind an entry point.

    Raises:
        PluginError: Its import fails, it misspells a hook, or its card is not valid. The message names distribution,
            version, cause and remedy.
    """
    try:
        return _load(found)
    except PluginError:
        raise
    except Exception as error:
        if os.environ.get("LLMCTL_STRICT") == "1":
            raise
        cause = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"the family {found.name!r} cannot be loaded: {found}, module {found.module}: {cause}\n"
            f"{_remedy(found)}   (LLMCTL_STRICT=1 shows the traceback)"
        ) from error


def _load(found: InstalledPlugin) -> Plugin:
    module = metadata.EntryPoint(found.name, found.module, hookspecs.GROUP).load()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(defaults)
    manager.register(module)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{found}, module {found.module}: {_misspelt(str(error))}") from error
    card = manager.hook.describe_family()
    if card is None:
        raise PluginError(f"{found}, module {found.module} implements no describe_family; see docs/plugins.md")
    _check_card(card, found)
    return Plugin(found, card, manager.hook)


def _check_card(card: Family, found: InstalledPlugin) -> None:
    if not isinstance(card, Family):
        raise PluginError(f"{found}: describe_family returned {type(card).__name__}, not llmctl.Family")
    if card.needs_api[0] != hookspecs.API[0] or card.needs_api > hookspecs.API:
        need, have = (".".join(map(str, version)) for version in (card.needs_api, hookspecs.API))
        raise PluginError(
            f"{found} needs hook API {need}, this llmctl offers {have}: pip install --upgrade {DISTRIBUTION}"
        )
    problems = validate(card) + misnamed_class(card, found.module, partial(package_folder, found))
    if card.name != found.name:
        problems.insert(0, f"the card is named {card.name!r}, the entry point {found.name!r}")
    if problems:
        raise PluginError(f"{found}: the card of {found.name!r} is not valid:\n  " + "\n  ".join(problems))


def _misspelt(message: str) -> str:
    match = re.search(r"unknown hook '?(\w+)'?", message)
    if not match:
        return message
    known = [name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")]
    near = difflib.get_close_matches(match[1], known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; hooks: {', '.join(known)}"
    return f"implements an unknown hook {match[1]!r}{hint}"


def _remedy(found: InstalledPlugin) -> str:
    """How to fix a distribution that cannot be imported: upgrade it, or edit it if it is an editable install."""
    try:
        origin = parse_json(metadata.distribution(found.distribution).read_text("direct_url.json") or "{}")
        editable, url = origin.get("dir_info", {}).get("editable", False), origin.get("url", "")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        editable, url = False, ""
    if editable:
        return f"It is installed from its sources: fix it in {url.removeprefix('file://')}"
    return f"Try: pip install --upgrade {found.distribution}"

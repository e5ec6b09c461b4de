"""The installed family plugins: listing entry points, selecting a family by name or by checkpoint.

The entry point's name is the family, its group carries the hook API's major. A plugin is imported only when it is loaded,
so that a broken one cannot harm another.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from llmctl.card.family import Family
from llmctl.errors import DISTRIBUTION, PluginError
from llmctl.io.json_object import read_json
from llmctl.plugins import hookspecs
from llmctl.plugins.loading import InstalledPlugin, Plugin, load_installed
from llmctl.runtime.distributions import entry_points

_ANY_GROUP = re.compile(r"llmctl\.family\.v(\d+)")


def installed() -> list[InstalledPlugin]:
    """Every family entry point of every API major, by name; nothing is imported."""
    rows = []
    for entry, distribution, version in entry_points():
        match = _ANY_GROUP.fullmatch(entry.group)
        if match:
            rows.append(InstalledPlugin(entry.name, entry.value, distribution, version, int(match[1])))
    return sorted(set(rows), key=lambda found: (found.name, found.distribution, found.version))


class Families:
    """The installed families, listed once and each loaded at most once, on first use.

    A job makes one, so that all its checks get the same ``Plugin``. The functions below make a new one for each call.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Plugin | PluginError] = {}

    @cached_property
    def _installed(self) -> list[InstalledPlugin]:
        return installed()

    @property
    def names(self) -> list[str]:
        """Names of all installed families, sorted."""
        return sorted({found.name for found in self._installed})

    def load(self, name: str) -> Plugin:
        """The family of this name.

        Raises:
            PluginError: It is not installed, two distributions claim it, it was made for another API, its import fails,
                it misspells a hook, or its card is not valid. The message names distribution, version, cause and remedy.
        """
        if name not in self._loaded:
            try:
                self._loaded[name] = load_installed(self._only(name))
            except PluginError as error:
                self._loaded[name] = error
        loaded = self._loaded[name]
        if isinstance(loaded, PluginError):
            raise loaded
        return loaded

    def load_for(self, config: Mapping[str, Any], where: str) -> Plugin:
        """The family whose card claims the config.json of a checkpoint.

        Args:
            config: Content of the checkpoint's config.json.
            where: Path of that file, for messages.

        Raises:
            PluginError: No installed family claims it (broken ones are named), or several do.
        """
        matches, broken = self._claimants(config)
        architectures = ", ".join(config["architectures"])
        if len(matches) > 1:
            names = " and ".join(f"{plugin.card.name} ({plugin.installed})" for plugin in matches)
            raise PluginError(
                f"{where}: the architecture {architectures} is claimed by {names}; choose one with --model NAME"
            )
        if not matches:
            unusable = "".join(f"not usable: {reason}\n" for reason in broken.values())
            guess = _guess(architectures)
            remedy = "Fix the one above" if guess in broken else f"Try: {_install(guess)}"
            raise PluginError(
                f"{unusable}{where}: no installed family claims the architecture {architectures}; installed: "
                f"{self._listed()}.\n{remedy}"
            )
        return matches[0]

    def resolve(self, name: str, config: Mapping[str, Any], where: str) -> Plugin:
        """The family called ``name``, or for ``"auto"`` the one that claims a checkpoint's architectures.

        Args:
            name: A family, or ``"auto"``.
            config: Content of the checkpoint's config.json.
            where: Path of that file, for messages.

        Raises:
            PluginError: As `load` and `load_for`; or the named family does not claim the architecture.
        """
        if name == "auto":
            return self.load_for(config, where)
        plugin = self.load(name)
        if not plugin.card.claims_config(config):
            found, known = ", ".join(config["architectures"]), ", ".join(plugin.card.architectures)
            raise PluginError(f"{where} says {found}, which is not of the family {name} ({known}); try --model auto")
        return plugin

    def card_of(self, folder: Path, name: str = "auto") -> Family | None:
        """The card of the family called ``name``, or for ``"auto"`` of the one that claims the folder's ``config.json``.

        None where that file is absent or no installed family claims it: a folder may hold only a tokenizer.

        Raises:
            PluginError: As `load`; or several families claim the architecture.
        """
        if name != "auto":
            return self.load(name).card
        config = read_json(folder / "config.json")
        if not isinstance(config.get("architectures"), list) or not self._claimants(config)[0]:
            return None
        return self.load_for(config, str(folder / "config.json")).card

    def _only(self, name: str) -> InstalledPlugin:
        """The one entry point of this name and of this hook API."""
        candidates = [found for found in self._installed if found.name == name]
        current = [found for found in candidates if found.api == hookspecs.API[0]]
        if not candidates:
            raise PluginError(self._not_installed(name))
        if not current:
            raise PluginError(_other_api(candidates[0]))
        if len(current) > 1:
            claimants = " and ".join(str(found) for found in current)
            raise PluginError(f"the family {name!r} is claimed by {claimants}; uninstall all but one")
        return current[0]

    def _claimants(self, config: Mapping[str, Any]) -> tuple[list[Plugin], dict[str, str]]:
        """Families that claim a config.json, and those that cannot be loaded, each with the reason."""
        matches, broken = [], {}
        for name in self.names:
            try:
                plugin = self.load(name)
            except PluginError as error:
                broken[name] = str(error)
                continue
            if plugin.card.claims_config(config):
                matches.append(plugin)
        return matches, broken

    def _not_installed(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names, 1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        return f"no family {name!r} is installed; installed: {self._listed()}. {hint}Try: {_install(name)}"

    def _listed(self) -> str:
        return ", ".join(self.names) or "none"


def load(name: str) -> Plugin:
    """As ``Families.load``."""
    return Families().load(name)


def load_for(config: Mapping[str, Any], where: str) -> Plugin:
    """As ``Families.load_for``."""
    return Families().load_for(config, where)


def resolve(name: str, config: Mapping[str, Any], where: str) -> Plugin:
    """As ``Families.resolve``."""
    return Families().resolve(name, config, where)


def card_of(folder: Path, name: str = "auto") -> Family | None:
    """As ``Families.card_of``."""
    return Families().card_of(folder, name)


def versions(plugin: Plugin | None = None) -> Mapping[str, str]:
    """Versions of llmctl and of the plugin's distribution, for reports."""
    from llmctl._version import __version__

    rows = {"llmctl": __version__}
    if plugin:
        rows[plugin.installed.distribution] = plugin.installed.version
    return rows


def _install(family: str) -> str:
    """How to get a family: by the extra of our distribution that names it, else by writing a plugin."""
    try:
        ours = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except Exception:  # the metadata of a source tree may be absent or damaged
        ours = []
    if family.replace("_", "-") in [name.replace("_", "-") for name in ours]:
        return f"pip install '{DISTRIBUTION}[{family.replace('_', '-')}]'"
    return f"llmctl new-plugin {family}, since none of llmctl's own distributions has it"


def _other_api(found: InstalledPlugin) -> str:
    have = hookspecs.API[0]
    remedy = f"pip install --upgrade {DISTRIBUTION if found.api > have else found.distribution}"
    return f"{found} provides {found.name!r} for hook API v{found.api}, this llmctl has v{have}. Try: {remedy}"


def _guess(architecture: str) -> str:
    return re.split(r"(?<=[a-z0-9])(?=[A-Z])|For", architecture)[0].lower() or "NAME"

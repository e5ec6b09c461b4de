"""Finding and loading family plugins through entry points.

The entry point's name is the family, its group carries the hook API's major. A plugin is imported only when it is asked
for: a broken one cannot harm another. Loading never has a side effect beyond the import and may be repeated.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pluggy

from llmctl.card.family import Family
from llmctl.card.validate import misnamed_class, validate
from llmctl.errors import PluginError
from llmctl.io.json_object import read_json
from llmctl.plugins import defaults, hookspecs

_ANY_GROUP = re.compile(r"llmctl\.family\.v(\d+)")


@dataclass(frozen=True)
class Found:
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
    """A loaded family: its card and its hooks, core's defaults behind the plugin's own."""

    found: Found
    card: Family
    hooks: Any

    @property
    def folder(self) -> Path:
        """The folder of the plugin's package, where its recipes and starter files lie."""
        return package_folder(self.found)


def installed() -> list[Found]:
    """Every family entry point of every API major, by name; nothing is imported."""
    rows = []
    for distribution in metadata.distributions():
        for entry in distribution.entry_points:
            match = _ANY_GROUP.fullmatch(entry.group)
            if match:
                name = distribution.metadata["Name"] or "unknown"
                rows.append(Found(entry.name, entry.value, name, distribution.version, int(match[1])))
    return sorted(set(rows), key=lambda found: (found.name, found.distribution, found.version))


def load(name: str) -> Plugin:
    """The family of this name.

    Raises:
        PluginError: It is not installed, two distributions claim it, it was made for another API, its import fails, it
            misspells a hook, or its card is not valid. The message names distribution, version, cause and remedy.
    """
    candidates = [found for found in installed() if found.name == name]
    current = [found for found in candidates if found.api == hookspecs.API[0]]
    if not candidates:
        raise PluginError(_not_installed(name))
    if not current:
        raise PluginError(_other_api(candidates[0]))
    if len(current) > 1:
        claimants = " and ".join(str(found) for found in current)
        raise PluginError(f"the family {name!r} is claimed by {claimants}; uninstall all but one")
    try:
        return _load(current[0])
    except PluginError:
        raise
    except Exception as error:
        if os.environ.get("LLMCTL_STRICT") == "1":
            raise
        cause = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"the family {name!r} cannot be loaded: {current[0]}, module {current[0].module}: {cause}\n"
            f"{_remedy(current[0])}   (LLMCTL_STRICT=1 shows the traceback)"
        ) from error


def load_for(config: Mapping[str, Any], where: str) -> Plugin:
    """The family whose card claims the config.json of a checkpoint.

    Raises:
        PluginError: No installed family claims it (broken ones are named), or several do.
    """
    matches, broken = _claimants(config)
    wanted = ", ".join(config["architectures"])
    if len(matches) > 1:
        names = " and ".join(f"{plugin.card.name} ({plugin.found})" for plugin in matches)
        raise PluginError(f"{where}: the architecture {wanted} is claimed by {names}; choose one with --model NAME")
    if not matches:
        unusable = "".join(f"not usable: {reason}\n" for reason in broken.values())
        guess = _guess(wanted)
        remedy = "Mend the one above" if guess in broken else f"Install its plugin, e.g. {_install(guess)}"
        raise PluginError(
            f"{unusable}{where}: no installed family claims the architecture {wanted}; installed: {_names()}.\n{remedy}"
        )
    return matches[0]


def resolve(name: str, config: Mapping[str, Any], where: str) -> Plugin:
    """The family called ``name``, or for ``"auto"`` the one that claims a checkpoint's architectures.

    Args:
        name: A family, or ``"auto"``.
        config: Content of the checkpoint's config.json.
        where: Path of that file, for messages.

    Raises:
        PluginError: As `load` and `load_for`; or the named family does not claim the architecture.
    """
    if name == "auto":
        return load_for(config, where)
    plugin = load(name)
    if not plugin.card.claims_config(config):
        found, known = ", ".join(config["architectures"]), ", ".join(plugin.card.architectures)
        raise PluginError(f"{where} says {found}, which is not of the family {name} ({known}); try --model auto")
    return plugin


def card_of(folder: Path, name: str = "auto") -> Family | None:
    """The card of the family called ``name``, or for ``"auto"`` of the one that claims the folder's ``config.json``.

    None where that file is absent or no installed family claims it: a tokenizer may stand alone.

    Raises:
        PluginError: As `load`; or several families claim the architecture.
    """
    if name != "auto":
        return load(name).card
    config = read_json(folder / "config.json")
    if not isinstance(config.get("architectures"), list) or not _claimants(config)[0]:
        return None
    return load_for(config, str(folder / "config.json")).card


def _claimants(config: Mapping[str, Any]) -> tuple[list[Plugin], dict[str, str]]:
    """Families that claim a config.json, and those that cannot be loaded, each with the reason."""
    matches, broken = [], {}
    for name in sorted({found.name for found in installed()}):
        try:
            plugin = load(name)
        except PluginError as error:
            broken[name] = str(error)
            continue
        if plugin.card.claims_config(config):
            matches.append(plugin)
    return matches, broken


def package_folder(found: Found) -> Path:
    """The folder of the package behind an entry point, found without importing it.

    Raises:
        PluginError: The package is not on the path.
    """
    spec = importlib.util.find_spec(found.module.partition(":")[0].partition(".")[0])
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"{found}: the package {found.module} is not on the path; reinstall {found.distribution}")
    return Path(next(iter(spec.submodule_search_locations)))


def _load(found: Found) -> Plugin:
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


def _check_card(card: Family, found: Found) -> None:
    if not isinstance(card, Family):
        raise PluginError(f"{found}: describe_family returned {type(card).__name__}, not llmctl.Family")
    if card.needs_api[0] != hookspecs.API[0] or card.needs_api > hookspecs.API:
        need, have = (".".join(map(str, version)) for version in (card.needs_api, hookspecs.API))
        raise PluginError(f"{found} needs hook API {need}, this llmctl offers {have}: pip install --upgrade llmctl")
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


def _not_installed(name: str) -> str:
    near = difflib.get_close_matches(name, {found.name for found in installed()}, 1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"no family {name!r} is installed; installed: {_names()}. {hint}Otherwise try: {_install(name)}"


def _install(family: str) -> str:
    return f"pip install llmctl-{family.replace('_', '-')}"


def _remedy(found: Found) -> str:
    """What to do about a distribution that cannot be imported: one that is being written cannot be upgraded."""
    try:
        origin = json.loads(metadata.distribution(found.distribution).read_text("direct_url.json") or "{}")
        editable, url = origin.get("dir_info", {}).get("editable", False), origin.get("url", "")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        editable, url = False, ""
    if editable:
        return f"It is installed from its sources: mend it in {url.removeprefix('file://')}"
    return f"Try: pip install --upgrade {found.distribution}"


def _other_api(found: Found) -> str:
    have = hookspecs.API[0]
    remedy = f"pip install --upgrade {'llmctl' if found.api > have else found.distribution}"
    return f"{found} provides {found.name!r} for hook API v{found.api}, this llmctl speaks v{have}. Try: {remedy}"


def _names() -> str:
    return ", ".join(sorted({found.name for found in installed()})) or "none"


def _guess(architecture: str) -> str:
    return re.split(r"(?<=[a-z0-9])(?=[A-Z])|For", architecture)[0].lower() or "NAME"


def versions(plugin: Plugin | None = None) -> Mapping[str, str]:
    """Versions of llmctl and of the plugin's distribution, for reports."""
    from llmctl._version import __version__

    rows = {"llmctl": __version__}
    if plugin:
        rows[plugin.found.distribution] = plugin.found.version
    return rows

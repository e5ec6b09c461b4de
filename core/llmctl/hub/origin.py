"""From a folder in a hub's cache to the model that was downloaded into it."""

from __future__ import annotations

import re
from pathlib import Path

from llmctl.hub.name import HF, MODELSCOPE, HubName

_HF = re.compile(r"models--(.+)")
_PLAIN = re.compile(r"([A-Za-z0-9][^/]*?--[^/]+)")


def origin(folder: Path) -> HubName | None:
    """The model and commit that a folder was downloaded from; None where it is in no cache.

    Both libraries keep a revision in a folder ``REPOSITORY/snapshots/REVISION``, which for the Hugging Face Hub is always a
    commit, for ModelScope what was asked for.
    """
    where = folder.expanduser().absolute()
    if where.parent.name != "snapshots":
        return None
    repository = where.parent.parent
    if found := _HF.fullmatch(repository.name):
        return HubName(HF, found[1].replace("--", "/", 1), where.name)
    if repository.parent.name == "models" and (found := _PLAIN.fullmatch(repository.name)):
        return HubName(MODELSCOPE, found[1].replace("--", "/", 1), where.name)
    return None

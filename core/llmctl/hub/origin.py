"""From a folder in a hub's cache, or one that links to a GGUF file there, to the model that was downloaded into it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmctl.hub.name import HF, MODELSCOPE, HubName
from llmctl.io.gguf_files import LINK

_HF = re.compile(r"models--(.+)")
_PLAIN = re.compile(r"([A-Za-z0-9][^/]*?--[^/]+)")


def origin(folder: Path) -> HubName | None:
    """The model and commit that a folder was downloaded from; None where it is in no cache.

    Both libraries keep a revision in a folder ``REPOSITORY/snapshots/REVISION``, which for the Hugging Face Hub is always a
    commit, for ModelScope what was asked for.
    """
    folder = folder.expanduser().absolute()
    link = folder / LINK
    # Links within a cache are relative; those of folders of GGUF files are not.
    target = Path(os.readlink(link)) if link.is_symlink() else folder
    within = target.parents if target.is_absolute() and target != folder else (folder,)
    snapshot = next((path for path in within if path.parent.name == "snapshots"), None)
    if snapshot is None:
        return None
    repository = snapshot.parent.parent
    choice = "" if snapshot == folder else target.relative_to(snapshot).as_posix()
    if found := _HF.fullmatch(repository.name):
        return HubName(HF, found[1].replace("--", "/", 1), snapshot.name, choice)
    if repository.parent.name == "models" and (found := _PLAIN.fullmatch(repository.name)):
        return HubName(MODELSCOPE, found[1].replace("--", "/", 1), snapshot.name, choice)
    return None

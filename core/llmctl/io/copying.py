"""Copying what is in a folder: our own whole, and the small files of a model that may come from anywhere.

A folder that was downloaded could hold a link to any file of this machine, whose content would then be in the copy: links that leave
it are not followed.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path


def copy_into(file: Path, target: Path) -> bool:
    """Copies a file of a folder into another folder, under its name; False with a warning if it is a link to a file outside.

    Links into the folder itself, and into the ``blobs`` of a Hugging Face cache that it belongs to, are followed.
    """
    home, real = file.parent.resolve(), file.resolve()
    blobs = home.parent.parent / "blobs"
    if not real.is_relative_to(home) and not (home.parent.name == "snapshots" and real.is_relative_to(blobs)):
        warnings.warn(
            f"{file} is a link to a file outside of its folder and is left out; copy the file there if it belongs to it",
            UserWarning,
            stacklevel=2,
        )
        return False
    shutil.copyfile(file, target / file.name)
    return True


def copy_content(folder: Path, target: Path) -> None:
    """Copies all files of a folder of our own, with those of its folders, into an existing one.

    Raises:
        OSError: The first error ends it, such as a full disk.
    """
    for file in sorted(folder.rglob("*")):
        copy = target / file.relative_to(folder)
        if file.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(file, copy)

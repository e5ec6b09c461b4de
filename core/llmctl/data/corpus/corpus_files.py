"""The two files of a corpus, replaced together: at each moment there are the old two or the new two.

New files are written into a folder next to the corpus, which is then renamed to ``.NAME.committed``: from there on they are
the corpus. They are moved to their places one after the other; readers look in the folder first, and the next build moves
what a killed one left there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmctl.io.atomic import atomic_folder, explain_os_errors


def idx_path(prefix: str | Path) -> Path:
    """Path of the ``.idx`` of a corpus."""
    return Path(f"{prefix}.idx")


def bin_path(prefix: str | Path) -> Path:
    """Path of the ``.bin`` of a corpus."""
    return Path(f"{prefix}.bin")


def current(prefix: str | Path) -> tuple[Path, Path]:
    """Paths of the index and the ids that are the corpus now, whatever a killed build left."""
    index, ids = idx_path(prefix), bin_path(prefix)
    if not index.exists():
        return index, ids
    waiting = _committed(prefix)
    new_index, new_ids = waiting / index.name, waiting / ids.name
    return (new_index if new_index.exists() else index), (new_ids if new_ids.exists() else ids)


@contextmanager
def replaced(prefix: str | Path) -> Iterator[tuple[Path, Path]]:
    """Paths to write a new index and new ids to; they become the corpus if the block ends without an exception.

    Raises:
        FileError: A file cannot be written, or the disk is full.
    """
    index, ids = idx_path(prefix), bin_path(prefix)
    _settle(prefix)
    with atomic_folder(_committed(prefix)) as work:
        yield work / index.name, work / ids.name
    with explain_os_errors(index):
        _settle(prefix, moved=True)


def _settle(prefix: str | Path, moved: bool = False) -> None:
    """Moves committed files to their places; those of a first build that was killed are removed instead."""
    waiting, index, ids = _committed(prefix), idx_path(prefix), bin_path(prefix)
    if not waiting.is_dir():
        return
    if moved or index.exists():
        # Ids first: a corpus exists once its index is next to its ids.
        for path in (ids, index):
            with suppress(FileNotFoundError):
                os.replace(waiting / path.name, path)
    shutil.rmtree(waiting, ignore_errors=True)


def _committed(prefix: str | Path) -> Path:
    path = idx_path(prefix)
    return path.with_name(f".{path.name.removesuffix('.idx')}.committed")

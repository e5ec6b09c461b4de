"""A cache of arrays on disk, under a hash of what they depend on; one process builds an entry, others wait.

An entry is a folder of ``.npy`` files, written atomically. Its builder holds a file lock, which the OS releases when the
process ends in any way; the lock file says which process holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.checkpoint import atomic_folder
from llmctl.errors import DataError, FileError

FOLDER, DESCRIPTION = "index-cache", "description.json"
WAIT = 600.0
"""Seconds to wait for another process that builds the same entry."""
_POLL = 0.2
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Cache:
    """The cache.

    Attributes:
        folders: Searched in order for an entry; a new entry is written to the first that is writable.
        wait: Seconds to wait for another process that builds the entry.
        notify: Called with a message when it waits.
    """

    folders: tuple[Path, ...]
    wait: float = WAIT
    notify: Callable[[str], None] = print

    @classmethod
    def for_corpus(cls, prefix: str | Path, chosen: Path | None = None, **settings: Any) -> Cache:
        """The cache of a corpus: the chosen folder if any, ``index-cache`` next to the corpus, the user's cache folder."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmctl" / FOLDER
        near = Path(os.path.abspath(prefix)).parent / FOLDER
        return cls((*([chosen] if chosen is not None else []), near, home), **settings)

    def get_or_build(self, description: Mapping[str, Any], build: Callable[[], Arrays]) -> tuple[Arrays, Path | None]:
        """The arrays, memory-mapped from an entry and built if there is none, and the folder of the entry.

        If no folder is writable, the arrays are built in memory and the folder is None.

        Args:
            description: Everything that the arrays depend on.
            build: Builds them.

        Raises:
            DataError: Another process is still building them after ``wait`` seconds.
        """
        name = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]
        for folder in self.folders:
            found = _load(folder / name)
            if found is not None:
                return found, folder / name
        problems = []
        for folder in self.folders:
            try:
                return self._make(folder / name, description, build)
            except _NotWritable as error:
                problems.append(str(error))
                warnings.warn(f"the index cannot be cached in {folder}: {error}", stacklevel=2)
        warnings.warn("the index is not cached, and the next run builds it again", stacklevel=2)
        return build(), None

    def _make(self, entry: Path, description: Mapping[str, Any], build: Callable[[], Arrays]) -> tuple[Arrays, Path]:
        with self._locked(entry):
            found = _load(entry)
            if found is None:
                arrays = build()
                _save(entry, description, arrays)
                found = _load(entry)
                assert found is not None
            return found, entry

    @contextlib.contextmanager
    def _locked(self, entry: Path) -> Iterator[None]:
        path = entry.with_name(entry.name + ".lock")
        handle = self._acquire(path)
        try:
            # The lock works without the holder's name, which cannot be written if the disk is full.
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)

    def _acquire(self, path: Path) -> int:
        """Opens and locks the file ``path``; returns its handle."""
        began = time.monotonic()
        notified = False
        while True:
            handle = _open(path)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder deletes the file; a lock on a deleted file excludes nobody.
                if _same(handle, path):
                    return handle
            holder = _holder(handle)
            os.close(handle)
            if time.monotonic() - began > self.wait:
                raise DataError(
                    f"the index {path.with_suffix('').name} is still being built by {holder} after {self.wait:g} seconds (lock: "
                    f"{path}); wait for that process, or kill it if it hangs, which releases the lock"
                )
            if not notified:
                self.notify(
                    f"waiting up to {self.wait:g} seconds for the index that {holder} is building (lock: {path})"
                )
                notified = True
            time.sleep(_POLL)


class _NotWritable(Exception):
    """The folder is not writable."""


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _NotWritable(error.strerror or str(error)) from None


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    try:
        who = json.loads(os.pread(handle, 4096, 0))
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError):
        return "another process"


def _save(entry: Path, description: Mapping[str, Any], arrays: Arrays) -> None:
    try:
        with atomic_folder(entry, overwrite=True) as folder:
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
            content = {**description, "arrays": sorted(arrays)}
            (folder / DESCRIPTION).write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
    except (FileError, OSError) as error:
        raise _NotWritable(str(error)) from None


def _load(entry: Path) -> Arrays | None:
    """The arrays of an entry; None if it does not exist, or an array is missing or damaged."""
    try:
        names = json.loads((entry / DESCRIPTION).read_text(encoding="utf-8"))["arrays"]
        return {name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    except (ValueError, KeyError, OSError, EOFError):
        return None

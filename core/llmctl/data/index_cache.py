"""A cache of arrays and files on disk, under a hash of what they depend on; one process builds an entry, others wait.

An entry is a folder, written atomically with the checksums of its arrays, which are ``.npy`` files; a damaged one is made again.
Its builder holds a file lock, which the OS releases when the process ends in any way; the lock file says which process holds
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.checkpoint import atomic_folder
from llmctl.errors import DataError, FileError
from llmctl.io.checksums import file_sum
from llmctl.io.lock import Busy, hold
from llmctl.io.typed import check_type
from llmctl.io.written import Description, WrittenEntry, read_written

FOLDER, DESCRIPTION = "index-cache", "description.json"
WAIT = 600.0
"""Seconds to wait for another process that builds the same entry."""
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """An entry of files.

    Attributes:
        folder: Its folder.
        arrays: Its arrays, memory-mapped.
        result: What was kept besides.
    """

    folder: Path
    arrays: Arrays
    result: dict[str, Any]


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
    def near(cls, data: str | Path, chosen: Path | None = None, **settings: Any) -> Cache:
        """The cache of a corpus or file: the chosen folder if any, ``index-cache`` next to it, the user's cache folder."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmctl" / FOLDER
        near = Path(os.path.abspath(data)).parent / FOLDER
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
        name = _name_of(description)
        for folder in self.folders:
            found = _load(folder / name)
            if found is not None:
                _remove_lock(folder / name)
                return found, folder / name
        for folder in self.folders:
            try:
                return self._make(folder / name, description, build)
            except _NotWritable as error:
                warnings.warn(f"the index cannot be cached in {folder}: {error}", stacklevel=2)
        warnings.warn("the index is not cached, and the next run builds it again", stacklevel=2)
        return build(), None

    def get_or_write(
        self, description: Mapping[str, Any], kind: Any, write: Callable[[Path], Mapping[str, Any]]
    ) -> Entry:
        """An entry that is written file by file, because it may be larger than memory.

        Args:
            description: Everything that it depends on.
            kind: What ``write`` returns, a class of ``io.written``.
            write: Writes arrays and other files into a folder; returns what is to be kept besides.

        Raises:
            DataError: No folder is writable, or another process is still writing the entry after ``wait`` seconds.
        """
        name = _name_of(description)
        for folder in self.folders:
            found = _load_entry(folder / name, kind)
            if found is not None:
                return found
        problems = []
        for folder in self.folders:
            try:
                with self._locked(folder / name):
                    found = _load_entry(folder / name, kind)
                    if found is None:
                        _write(folder / name, description, write)
                        found = _load_entry(folder / name, kind)
                        assert found is not None
                    return found
            except _NotWritable as error:
                problems.append(f"{folder}: {error}")
        raise DataError(
            "no folder for the index is writable; set data.index_cache to one that is\n  " + "\n  ".join(problems)
        )

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
        path = _lock_of(entry)

        def on_wait(holder: str) -> None:
            self.notify(f"waiting up to {self.wait:g} seconds for the index that {holder} is building (lock: {path})")

        with contextlib.ExitStack() as stack:
            try:
                entry.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(path, self.wait, on_wait))
            except Busy as busy:
                raise DataError(
                    f"the index {entry.name} is still being built by {busy} after {self.wait:g} seconds (lock: {path}); wait "
                    "for that process, or kill it if it hangs, which releases the lock"
                ) from None
            except OSError as error:
                raise _NotWritable(error.strerror or str(error)) from None
            yield


class _NotWritable(Exception):
    """The folder is not writable."""


def _name_of(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def _write(entry: Path, description: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]) -> None:
    try:
        with atomic_folder(entry, overwrite=True) as folder:
            result = write(folder)
            arrays = {file.stem: file_sum(file) for file in sorted(folder.glob("*.npy"))}
            others = {file.name: file.stat().st_size for file in folder.iterdir() if file.suffix != ".npy"}
            content = {**description, "arrays": arrays, "others": others, "result": dict(result)}
            (folder / DESCRIPTION).write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
    except FileError as error:
        raise _NotWritable(str(error)) from None


def _load_entry(entry: Path, kind: Any) -> Entry | None:
    """An entry of files; None if it does not exist or is damaged."""
    arrays = _load(entry)
    if arrays is None:
        return None
    try:
        content = read_written(entry / DESCRIPTION, WrittenEntry, "", required=True)
        check_type(content["result"], kind)
        sizes = {name: (entry / name).stat().st_size for name in content["others"]}
    except (FileError, ValueError, OSError):
        return None
    return Entry(entry, arrays, content["result"]) if sizes == content["others"] else None


def _lock_of(entry: Path) -> Path:
    return entry.with_name(entry.name + ".lock")


def _remove_lock(entry: Path) -> None:
    """Removes the lock file that a builder left which was killed after all was written."""
    path = _lock_of(entry)
    if path.exists():
        with contextlib.suppress(Busy, OSError), hold(path):
            pass


def _save(entry: Path, description: Mapping[str, Any], arrays: Arrays) -> None:
    try:
        with atomic_folder(entry, overwrite=True) as folder:
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
            sums = {name: file_sum(folder / f"{name}.npy") for name in sorted(arrays)}
            content = {**description, "arrays": sums}
            (folder / DESCRIPTION).write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
    except (FileError, OSError) as error:
        raise _NotWritable(str(error)) from None


def _load(entry: Path) -> Arrays | None:
    """The arrays of an entry; None if it does not exist, or an array is missing or damaged."""
    try:
        sums = read_written(entry / DESCRIPTION, Description, "", required=True)["arrays"]
        files = {file.stem: file for file in entry.glob("*.npy")}
        if {name: file_sum(file) for name, file in files.items()} != sums:
            return None
        return {name: np.load(file, mmap_mode="r", allow_pickle=False) for name, file in files.items()}
    except (FileError, ValueError, OSError, EOFError):
        return None

"""Atomic writes: a file or folder appears complete or not at all, even if the process is killed.

Content is written to a temporary sibling, synced to disk and renamed. The writer holds a lock on its temporary, so the
next writer of the same path can tell a leftover of a killed process, and removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from llmctl.errors import FileError
from llmctl.io.lock import try_flock

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends without an exception.

    Args:
        path: The folder to write; its parents are created. It may exist if it is empty.
        overwrite: Replace a folder that is not empty; it stays unchanged until the block ends.

    Raises:
        FileError: The folder exists and is not empty, cannot be written, or the disk is full.
    """
    path = _absolute(path)
    _recover(path)
    if path.exists() and not (path.is_dir() and (overwrite or not any(path.iterdir()))):
        raise FileError(f"{path} already exists; choose another folder, delete it, or allow overwriting it")
    with _explain(path), _locked_sibling(path) as temporary:
        yield temporary
        publish_folder(temporary, path)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary path; the file written there replaces ``path`` when the block ends without an exception.

    Raises:
        FileError: The file cannot be written, the disk is full, or the path is a folder, a device or a pipe.
    """
    path = _absolute(path)
    if path.exists() and not path.is_file():
        raise FileError(f"{path} is not a regular file and is not overwritten; choose another path")
    with _explain(path), _locked_sibling(path) as temporary:
        file = temporary / path.name
        yield file
        _sync(file)
        os.replace(file, path)
        _sync_parent(path)


def temporary_prefix(path: Path) -> str:
    """What the names of temporary files and folders for a path begin with."""
    return f".{path.name}.partial-"


def check_writable(folder: str | Path) -> None:
    """Checks that a folder, which may not exist yet, can be written; leaves nothing behind.

    Raises:
        FileError: It cannot be written.
    """
    folder = _absolute(folder)
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        tempfile.TemporaryDirectory(prefix=temporary_prefix(folder), dir=nearest).cleanup()
    except OSError as error:
        raise FileError(f"cannot write {folder}: {nearest}: {error.strerror}; choose another folder") from error


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))


@contextlib.contextmanager
def _locked_sibling(path: Path) -> Iterator[Path]:
    prefix = temporary_prefix(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, prefix)
        temporary, lock = locked_folder(path.parent, prefix)
    except FileNotFoundError as error:
        raise FileError(f"cannot write {path}: {path.parent} cannot be created; choose another folder") from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def locked_folder(parent: Path, prefix: str, mode: int = 0o777) -> tuple[Path, int]:
    """Creates a folder that ``remove_leftovers`` keeps as long as the process lives and the handle is open.

    Returns:
        The folder, and a handle to close when it is no longer needed.
    """
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(4)}"
        folder.mkdir(mode)
        handle = os.open(folder, os.O_RDONLY)
        # Between the two calls, another process may have taken it for a leftover.
        if try_flock(handle) is not False and folder.exists():
            return folder, handle
        os.close(handle)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Removes folders of this prefix, which may have wildcards, that no process holds a lock on any more."""
    for leftover in parent.glob(prefix.replace("[", "[[]") + "*"):
        with contextlib.suppress(OSError):
            lock = os.open(leftover, os.O_RDONLY)
            try:
                if try_flock(lock):
                    shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(lock)


def publish_folder(temporary: Path, path: Path) -> None:
    """Syncs a complete folder to disk, then puts it in the place of ``path`` in one step; what was there is removed.

    A process that is killed in between leaves the previous content at ``path``, or under the name ``temporary``.
    """
    _recover(path)
    # A writer of a file in it may have failed to remove its own temporary.
    remove_leftovers(temporary, ".*.partial-")
    for file in temporary.rglob("*"):
        _sync(file)
    _sync(temporary)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        _exchange(temporary, path)
    else:
        os.replace(temporary, path)
    _sync_parent(path)
    _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(temporary: Path, path: Path) -> None:
    """Swaps two folders: atomically on Linux, elsewhere in two renames."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(temporary), os.fsencode(path)
    if renameat2 and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    os.replace(path, _previous(path))
    os.replace(temporary, path)
    _remove(_previous(path))


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _recover(path: Path) -> None:
    """Restores or removes the previous folder that an interrupted ``_exchange`` in two renames left."""
    if _previous(path).exists():
        if path.exists():
            _remove(_previous(path))
        else:
            os.replace(_previous(path), path)


def _explain(path: Path) -> AbstractContextManager[None]:
    unchanged = f"; the previous {path} is intact" if path.exists() else "; nothing was written"
    return explain_os_errors(path, unchanged)


@contextlib.contextmanager
def explain_os_errors(path: str | Path, outcome: str = "") -> Iterator[None]:
    """Context manager that turns errors of the operating system, such as a full disk, into a ``FileError``.

    A missing file keeps its type, because the block may look for one that it reads; so does a closed pipe or connection.

    Args:
        path: The file or folder that the block writes.
        outcome: What became of it, appended to the message.

    Raises:
        FileError: It cannot be written.
    """
    try:
        yield
    except (FileNotFoundError, ConnectionError):
        raise
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise FileError(f"disk full while writing {path}{outcome}") from error
        file = "" if error.filename is None else f": {error.filename}"
        raise FileError(f"cannot write {path}: {error.strerror or error}{file}{outcome}") from error


def _sync_parent(path: Path) -> None:
    with explain_os_errors(path, "; it is complete, but a power failure now could undo it"):
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

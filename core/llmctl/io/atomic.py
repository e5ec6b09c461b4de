"""Files and folders that appear complete or not at all, whatever ends the process.

Content is written into a temporary sibling, flushed to disk and renamed. The writer holds a lock on its temporary, so
the next writer of the same name recognises what a killed one left behind and removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from llmctl.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends without an exception.

    Args:
        path: The folder to make; its parents are created. An empty folder may be there already.
        overwrite: Replace a folder that holds something; until the block has ended it stays as it is.

    Raises:
        CheckpointError: The folder is there already, cannot be written, or the disk is full.
    """
    path = _absolute(path)
    _recover(path)
    if path.exists() and not (path.is_dir() and (overwrite or not any(path.iterdir()))):
        raise CheckpointError(f"{path} exists already; choose another folder, remove it or allow overwriting it")
    with _explained(path), _locked_sibling(path) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        _replace_folder(temporary, path)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary path; the file written there replaces ``path`` when the block ends without an exception.

    Raises:
        CheckpointError: The file cannot be written, the disk is full, or what is there is a folder, a device or a pipe, which
            a file must not take the place of.
    """
    path = _absolute(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no regular file and cannot be replaced by one; name another file")
    with _explained(path), _locked_sibling(path) as temporary:
        file = temporary / path.name
        yield file
        _sync(file)
        os.replace(file, path)
        _sync(path.parent)


def check_place(folder: str | Path) -> None:
    """Tries to write in a folder, which may not be there yet, and leaves nothing behind.

    Raises:
        CheckpointError: Nothing can be written there.
    """
    folder = _absolute(folder)
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.partial-", dir=nearest).cleanup()
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {nearest}: {error.strerror}; choose another folder") from error


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))


@contextlib.contextmanager
def _locked_sibling(path: Path) -> Iterator[Path]:
    prefix = f".{path.name}.partial-"
    temporary = path.parent / f"{prefix}{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent, prefix)
        temporary.mkdir()
    except FileNotFoundError as error:
        raise CheckpointError(f"cannot write {path}: nothing can be made in {path.parent}; choose another") from error
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _remove_leftovers(parent: Path, prefix: str) -> None:
    for leftover in parent.glob(prefix.replace("[", "[[]") + "*"):
        with contextlib.suppress(OSError):
            lock = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(lock)


def _replace_folder(temporary: Path, path: Path) -> None:
    if path.exists() and any(path.iterdir()):
        _exchange(temporary, path)
    else:
        os.replace(temporary, path)
    _sync(path.parent)


def _exchange(temporary: Path, path: Path) -> None:
    """Swaps two folders in one step where the system can (Linux), else in two with a short gap."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(temporary), os.fsencode(path)
    if renameat2 and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    os.replace(path, _previous(path))
    os.replace(temporary, path)
    shutil.rmtree(_previous(path), ignore_errors=True)


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _recover(path: Path) -> None:
    """Puts back, or removes, what an `_exchange` in two steps left when it was interrupted."""
    if _previous(path).exists():
        if path.exists():
            shutil.rmtree(_previous(path), ignore_errors=True)
        else:
            os.replace(_previous(path), path)


def _explained(path: Path) -> AbstractContextManager[None]:
    return explained(path, f"; the previous {path} is intact" if path.exists() else "; nothing was left there")


@contextlib.contextmanager
def explained(path: str | Path, kept: str = "") -> Iterator[None]:
    """A context in which a full disk, or a place that may not be written, is an error that says so.

    Args:
        path: What is written.
        kept: What is left of it, for the message.

    Raises:
        CheckpointError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CheckpointError(f"disk full while writing {path}{kept}") from error
        if error.errno in _REFUSED:
            raise CheckpointError(f"cannot write {path}: {error.strerror}: {error.filename}{kept}") from error
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

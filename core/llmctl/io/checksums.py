"""The manifest of a folder: size and checksum of each of its files, to find damaged ones.

CRC-32 finds accidental damage, such as flipped bits and files cut short; it is no protection against forgery.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llmctl.errors import FileError
from llmctl.io.digest import sha256
from llmctl.io.json_object import write_json
from llmctl.io.written import FileSum, Manifest, read_written

MANIFEST = "manifest.json"
WORKERS = 2
"""Files that are read at a time; CRC-32 releases the GIL."""


def crc32(file: Path) -> str:
    """CRC-32 of the content of a file, in hexadecimal."""
    value, buffer = 0, memoryview(bytearray(1 << 18))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            value = zlib.crc32(buffer[:count], value)
    return f"{value:08x}"


def file_sum(file: Path) -> FileSum:
    """Size and checksum of a file."""
    return {"bytes": file.stat().st_size, "crc32": crc32(file)}


def write_manifest(folder: Path) -> None:
    """Writes the manifest of all files that are in a folder now, and begins to flush them to disk meanwhile."""
    names = list(_names(folder))
    with ThreadPoolExecutor(2 * WORKERS) as pool:
        for name in names:
            pool.submit(_flush, folder / name)
        sums = list(pool.map(lambda name: file_sum(folder / name), names))
    write_json(folder / MANIFEST, {"files": dict(zip(names, sums, strict=True))})


def read_manifest(folder: Path) -> dict[str, FileSum]:
    """File -> its size in ``bytes`` and its ``crc32`` or ``sha256``; empty if there is no manifest or it names no files.

    Raises:
        FileError: The manifest is damaged.
    """
    files: dict[str, FileSum] = read_written(folder / MANIFEST, Manifest, "restore the folder").get("files", {})
    for name, row in files.items():
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or not CHECKSUMS.keys() & row.keys():
            raise FileError(f"{folder / MANIFEST} is damaged: {name!r} is not a file of the folder with a checksum")
    return files


def find_damage(folder: Path) -> list[str]:
    """Compares the files of a folder with its manifest.

    Returns:
        A sentence for each file that is missing or differs.

    Raises:
        FileError: The manifest is damaged, or a file cannot be read.
    """
    rows = read_manifest(folder)
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(filter(None, pool.map(lambda name: _damage(folder, name, rows[name]), rows)))


def _flush(file: Path) -> None:
    """Writes a file from the page cache to disk; an error is found again when the folder is published."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        os.fsync(stream.fileno())


def _damage(folder: Path, name: str, row: Mapping[str, Any]) -> str:
    file = folder / name
    try:
        if not file.is_file():
            return f"{name} is missing"
        if (size := file.stat().st_size) != row["bytes"]:
            return f"{name} has {size} bytes, {row['bytes']} were written"
        kind, checksum = next((kind, function) for kind, function in CHECKSUMS.items() if kind in row)
        return "" if checksum(file) == row[kind] else f"the content of {name} is not what was written ({kind} differs)"
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror}") from None


CHECKSUMS = {"sha256": sha256, "crc32": crc32}


def _names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            yield path.relative_to(folder).as_posix()

"""Hashes of files."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path


def sha256(file: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_files(folder: Path, suffixes: Collection[str]) -> str:
    """SHA-256 of the names and contents of the files in a folder that have one of some suffixes, in hexadecimal."""
    files = sorted(file for file in folder.iterdir() if file.suffix in suffixes and file.is_file())
    return hashlib.sha256("".join(f"{file.name}\0{sha256(file)}\n" for file in files).encode()).hexdigest()
